"""
Runs that something outside stops: Ctrl-C, a full disk, a shard that vanishes. Nothing is lost, and it is said clearly.

    pytest tests/engine/test_failures.py
"""

import json
import re
import signal

import datasets
import pytest

from pvt_hf.data import windows
from pvt_hf.data.digits import digit_images
from pvt_hf.data.streams import StreamError
from pvt_hf.engine.checkpoints import list_checkpoints

from ..support.training_runs import TRAIN, flags, kill_at_step, make_photos, run_patched, train_here
from ..support.warm_processes import run


def test_ctrl_c_with_workers_saves_and_exits_cleanly(tmp_path):
    """The signal reaches the whole process group, as from a terminal: the loader's workers must outlive it."""
    options = {"num_workers": 2, "samples_per_epoch": 128, "epochs": 1}
    assert kill_at_step(tmp_path, 1, signal.SIGINT, processes=1, **options) == 0
    assert list_checkpoints(tmp_path) and not (tmp_path / "run.json").exists()
    result = run([TRAIN, *flags(output_dir=tmp_path, resume_from_checkpoint="latest", **options)])
    assert "Resumed from" in result.stdout and json.loads((tmp_path / "run.json").read_text())["steps"] == 4


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path):
    """
    From the second save on the first of two processes may write no file above 20 kB: the write fails as on a full disk
    or over a quota. Both stop, without waiting for each other.
    """
    patch = """
real, calls = loop.save_checkpoint, []
def save_checkpoint(accelerator, *arguments):
    calls.append(1)
    if len(calls) == 2 and accelerator.is_main_process:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return real(accelerator, *arguments)
loop.save_checkpoint = save_checkpoint
"""
    options = {"batch_size": 16, "epochs": 1}
    result = run_patched(patch, tmp_path, processes=2, **options)
    assert result.returncode != 0
    assert re.search(
        r"error: Could not save .*checkpoint-00000008: .*File too large.*checkpoint-00000004", result.stderr
    )
    assert "another process failed" in result.stderr
    out = tmp_path / "out"
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-00000004"] and not list(
        out.glob(".checkpoint*")
    )
    resumed = flags(output_dir=out, resume_from_checkpoint="latest", **options)
    assert "step 4)" in run([TRAIN, *resumed], processes=2).stdout and (out / "model.safetensors").exists()


@pytest.fixture()
def shards(tmp_path):
    """Twelve parquet files of eight digits each, in two classes: more than is read ahead."""
    features = datasets.Features(
        {"sample_id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)}
    )
    digits = iter(digit_images("train", image_size=32).decode(False))
    (tmp_path / "data").mkdir()
    for number in range(12):
        rows = [{**next(digits), "label": index % 2} for index in range(8)]
        datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / f"train-{number}.parquet")
    return tmp_path / "data"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_vanishes_leaves_a_checkpoint_to_go_on_from(shards, tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(windows, "RETRY_SECONDS", (0.1, 0.1))
    options = {"num_workers": num_workers, "batch_size": 4, "epochs": 1, "save_total_limit": 0}
    straight, _ = train_here(shards, tmp_path / "straight", **options)
    hidden, file, steps = tmp_path / "hidden.parquet", shards / "train-9.parquet", []

    def watch(model, batch):
        steps.append(1)
        if len(steps) == 1:
            file.rename(hidden)

    with pytest.raises(StreamError, match=r"could not be read, also after 2 new attempts: FileNotFoundError") as error:
        train_here(shards, tmp_path / "run", watch, **options)
    message = (
        f"Stopped at step {len(steps)}: repair the data and continue from {list_checkpoints(tmp_path / 'run')[-1]}"
    )
    assert message in str(error.value) and "Traceback" not in str(error.value)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"checkpoint-{len(steps):08d}"]
    hidden.rename(file)
    again, report = train_here(shards, tmp_path / "run", resume_from_checkpoint="latest", **options)
    assert report["steps"] == report["trained"] // 4 == 24
    for name, tensor in straight.state_dict().items():
        assert (tensor == again.state_dict()[name]).all(), name


def test_data_that_fail_before_the_first_step_leave_the_folder_free(tmp_path):
    """A checkpoint of step 0 would hold nothing, and the next try would be refused because of it."""
    photos = make_photos(tmp_path / "photos", 8)
    contents = {file: file.read_bytes() for file in photos.rglob("*.jpg")}
    for file in contents:
        file.write_bytes(b"no image")
    with pytest.raises(StreamError, match=r"(?s)apple/.*step 0: repair the data and start again"):
        train_here(photos, tmp_path / "run")
    assert list_checkpoints(tmp_path / "run") == []
    for file, content in contents.items():
        file.write_bytes(content)
    _, report = train_here(photos, tmp_path / "run")
    assert report["steps"] == 4


def test_a_source_that_comes_back_is_read_on(shards, tmp_path, monkeypatch):
    """The file returns during the second wait: nothing is lost, nothing comes twice."""
    hidden, file, waits = tmp_path / "hidden.parquet", shards / "train-9.parquet", []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            hidden.rename(file)

    monkeypatch.setattr(windows.time, "sleep", sleep)
    straight, _ = train_here(shards, tmp_path / "straight", batch_size=4, epochs=1)
    first = []
    again, report = train_here(
        shards, tmp_path / "run", lambda model, batch: first or first.append(file.rename(hidden)) or first.append(1),
        batch_size=4, epochs=1,
    )  # fmt: skip
    assert waits == [1.0, 4.0] and report["trained"] == 96
    for name, tensor in straight.state_dict().items():
        assert (tensor == again.state_dict()[name]).all(), name
