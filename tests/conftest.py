"""
What every test runs in: without a network, with one thread, with the same random numbers, and with a Hugging Face home
of its own, so that nothing on this machine matters and nothing is left on it.
"""

import os
import random
import re
import shutil
import tempfile
from pathlib import Path

import pytest


# Before anything imports torch or Transformers, which read them once; child processes inherit them.
HOME = tempfile.mkdtemp(prefix="pvt-hf-tests-")
os.environ |= {"HF_HOME": HOME, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores
for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_VERBOSITY"):
    os.environ.pop(name, None)


pytest.register_assert_rewrite("tests.support")  # says what the sides of a failed `assert` were


def pytest_collection_modifyitems(items):
    """Long files first, by the last measurement, so that no process is left with one at the end."""
    table = (Path(__file__).parent / "DURATIONS.md").read_text()
    seconds = {file: float(number) for number, file in re.findall(r"^\| +([\d.]+) \| (tests/\S+)", table, re.MULTILINE)}
    items.sort(key=lambda item: -seconds.get(item.nodeid.split("::")[0], 0.0))  # stable: tests keep their order


def pytest_unconfigure(config):
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def seeds():
    """Each test starts with the same random numbers, whatever ran before it."""
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
