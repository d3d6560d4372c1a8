"""
Commands that compute keep freed memory, unless users have made their own choice; importing the package does not.

    pytest tests/commands/test_allocator.py
"""

import json
import platform
import re
import sys

import pytest
import torch

from pvt_hf.commands import allocator, evaluate, finetune, predict, train

from ..support.clean_process import REPOSITORY, run_python


# Page faults of ten objects of 100 MB, written and freed one after the other, after the first one; then, how often the
# heap grows for 200 objects of 1 MB that stay
COUNT = """
import ctypes, json, resource, sys

done = None
if sys.argv[1:]:
    from pvt_hf.commands.allocator import keep_freed_memory

    done = keep_freed_memory(on_cpu=True)
size = 100 * 10**6
bytes([1]) * size
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytes([1]) * size
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

sbrk = ctypes.CDLL(None).sbrk
sbrk.restype = ctypes.c_void_p
ends, kept = set(), []
for _ in range(200):
    kept.append(bytes(10**6))
    ends.add(sbrk(0))
print(json.dumps({"done": done, "faults": faults, "growths": len(ends) - 1}))
"""
PAGES = 10 * 100 * 10**6 // 4096  # of the smallest size
glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in allocator.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def count(*arguments, code=COUNT, **environment):
    return json.loads(run_python(code, *arguments, environment=environment).stdout)


@glibc_only
def test_freed_memory_is_kept_when_it_is_asked_for():
    found = count("keep")
    assert found["done"] and found["faults"] < 500
    assert found["growths"] <= 200 // 64 + 1  # of at least 64 MiB each


@glibc_only
@pytest.mark.parametrize("setting", allocator.SETTINGS)
def test_every_setting_is_needed(setting):
    """Two of the three do not pass the test above."""
    others = {name: str(value) for name, (_, value) in allocator.SETTINGS.items() if name != setting}
    found = count(**others)
    assert found["faults"] > PAGES // 1024 or found["growths"] > 50  # a fault may clear a page of up to 2 MB


@glibc_only
def test_the_library_does_not_change_the_allocator_of_a_program():
    assert count(code="import pvt_hf\n" + COUNT)["faults"] > PAGES // 1024


@glibc_only
def test_what_the_page_tells_users_to_set():
    """The first keeps freed memory, the second is a choice that the commands respect, and changes nothing else."""
    page = (REPOSITORY / "docs" / "performance.md").read_text()
    keep, leave = re.findall(r"^export (.*MALLOC_.*)$|`(GLIBC_TUNABLES=)`", page, flags=re.MULTILINE)
    assert count(**dict(word.split("=") for word in keep[0].split()))["faults"] < 500
    found = count("keep", **dict([leave[1].split("=")]))
    assert not found["done"] and found["faults"] > PAGES // 1024


@glibc_only
@pytest.mark.parametrize("name", allocator.VARIABLES)
def test_variables_of_the_user_count(name, monkeypatch):
    monkeypatch.setenv(name, "1000000" if name != "GLIBC_TUNABLES" else "glibc.malloc.arena_max=4")
    assert not allocator.keep_freed_memory(on_cpu=True)


def test_computing_on_a_gpu_changes_nothing(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not allocator.keep_freed_memory(on_cpu=False)


@pytest.mark.parametrize(
    ("command", "words", "function"),
    [
        (
            lambda: train.main("image-classification"),
            ["digits_pvt", "--output_dir", "OUT", "--cpu"],
            "pvt_hf.engine.run.train",
        ),
        (
            lambda: evaluate.main("image-classification"),
            ["--model", "path", "--dataset", "digits", "--cpu"],
            "pvt_hf.engine.evaluation.evaluate_checkpoint",
        ),
        (
            finetune.main,
            ["image-classification", "--model", "path", "--dataset", "digits", "--output_dir", "OUT", "--use_cpu"],
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
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda on_cpu: events.append(f"on_cpu={on_cpu}"))
    monkeypatch.setattr(function, lambda *arguments, **options: events.append("computed"))
    command()
    assert events == ["on_cpu=True", "computed"]
