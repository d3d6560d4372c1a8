"""
Commands that compute keep freed memory, unless the user has chosen for himself; importing the package does not.

    pytest tests/commands/test_allocator.py
"""

import json
import platform
import sys

import pytest

from pvt_hf.commands import allocator, evaluate, finetune, predict, train

from ..support.clean_process import run_python


# Page faults of ten objects of 48 MB, written and freed one after the other, after the first one
COUNT_FAULTS = """
import json, resource, sys
import pvt_hf
from pvt_hf.commands.allocator import keep_freed_memory

size = 48 * 2**20
done = keep_freed_memory() if sys.argv[1:] else None
bytes([1]) * size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytes([1]) * size
print(json.dumps({"done": done, "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}))
"""
PAGES = 10 * 48 * 2**20 // 4096  # of the smallest size
glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")


def count_faults(*arguments):
    return json.loads(run_python(COUNT_FAULTS, *arguments).stdout)


@glibc_only
def test_freed_memory_is_kept_when_it_is_asked_for(monkeypatch):
    for name in allocator.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert count_faults("keep") == {"done": True, "faults": pytest.approx(0, abs=500)}
    found = count_faults()
    # a library that changed the allocator of its users' programs at import would show here
    assert found["done"] is None and found["faults"] > PAGES // 1024  # a fault may clear a page of up to 2 MB


@glibc_only
@pytest.mark.parametrize("name", allocator.VARIABLES)
def test_variables_of_the_user_count(name, monkeypatch):
    monkeypatch.setenv(name, "1000000" if name != "GLIBC_TUNABLES" else "glibc.malloc.arena_max=4")
    assert not allocator.keep_freed_memory()


@pytest.mark.parametrize(
    ("command", "words", "function"),
    [
        (lambda: train.main("image-classification"), ["digits_pvt", "--output_dir", "OUT"], "pvt_hf.engine.run.train"),
        (
            lambda: evaluate.main("image-classification"),
            ["--model", "path", "--dataset", "digits"],
            "pvt_hf.engine.evaluation.evaluate_checkpoint",
        ),
        (
            finetune.main,
            ["image-classification", "--model", "path", "--dataset", "digits", "--output_dir", "OUT"],
            "pvt_hf.engine.finetuning.finetune",
        ),
        (
            predict.main,
            ["--model", "sample:digits-segmenter", "photo:china", "--output_dir", "OUT"],
            "pvt_hf.inference.files.predict_files",
        ),
    ],
)
def test_commands_ask_before_they_compute(command, words, function, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(sys, "argv", ["pvt-hf", *[word.replace("OUT", str(tmp_path / "out")) for word in words]])
    for module in (train, evaluate, finetune, predict):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: events.append("kept"))
    monkeypatch.setattr(function, lambda *arguments, **options: events.append("computed"))
    command()
    assert events == ["kept", "computed"]
