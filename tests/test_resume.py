"""
Interrupted training: killed at any moment and resumed it ends with the bits of the uninterrupted run; saves are whole
or not there; signals save and exit.

    pytest tests/test_resume.py              # the smaller cases
    pytest tests/test_resume.py -m slow      # the whole matrix of processes and workers, killed twice
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pvt_hf.training.checkpoint import list_checkpoints

from .training_runs import (
    ROOT,
    TRAIN,
    assert_equal_weights,
    environment,
    flags,
    kill_at_step,
    launcher,
    run,
    run_patched,
)


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    """An uninterrupted run of 16 steps in one process."""
    folder = tmp_path_factory.mktemp("straight")
    run([TRAIN, *flags(output_dir=folder)])
    return folder


def test_killed_and_resumed_ends_with_the_same_bits(straight_run, tmp_path):
    """SIGKILL in the second epoch; shuffling, mixing, RandAugment, erasing and drop path are all on."""
    kill_at_step(tmp_path, 11, signal.SIGKILL, processes=1)
    result = run([TRAIN, *flags(output_dir=tmp_path, save_every_steps=1, resume_from_checkpoint="latest")])
    assert re.search(r"Resumed from .*checkpoint-000000(1[1-6])", result.stdout)
    assert_equal_weights(tmp_path, straight_run)


def test_sigterm_saves_and_exits_cleanly(straight_run, tmp_path):
    assert kill_at_step(tmp_path, 3, signal.SIGTERM, processes=1) == 0
    assert not (tmp_path / "model.safetensors").exists()
    refused = run([TRAIN, *flags(output_dir=tmp_path)], check=False)
    assert refused.returncode != 0 and "--resume_from_checkpoint latest" in refused.stderr
    run([TRAIN, *flags(output_dir=tmp_path, resume_from_checkpoint="latest")])
    assert_equal_weights(tmp_path, straight_run)


def test_a_kill_inside_a_save_leaves_the_one_before(straight_run, tmp_path):
    """SIGKILL when the second checkpoint's files are written but not yet in place."""
    patch = """
real, calls = checkpoint.os.fsync, []
def fsync(handle):
    real(handle)
    calls.append(handle)
    if "checkpoint-00000008" in os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}"):
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.os.fsync = fsync
"""
    assert run_patched(patch, tmp_path).returncode == -signal.SIGKILL
    out = tmp_path / "out"
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-00000004"]
    assert list(out.glob(".checkpoint-00000008*"))
    result = run([TRAIN, *flags(output_dir=out, save_every_steps=4, resume_from_checkpoint="latest")])
    assert "checkpoint-00000004 (epoch 0, step 4)" in result.stdout and not list(out.glob(".checkpoint*"))
    assert_equal_weights(out, straight_run)


def wait_for(checkpoint: Path, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 1500
    while not checkpoint.exists():
        assert child.poll() is None, child.communicate()[1].decode()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_all(folder: Path) -> None:
    """SIGKILL to every process of the run in `folder`: torchrun's children have sessions of their own."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # gone in the meantime
            if str(folder).encode() in command.read_bytes():
                os.kill(int(command.parent.name), signal.SIGKILL)


def kill_at_random(folder: Path, moments: random.Random, after: int, processes: int, **overrides) -> None:
    """Kills every process of a run at a random moment after the checkpoint of a random step beyond `after`."""
    resume = {"resume_from_checkpoint": "latest"} if after else {}
    arguments = [TRAIN, *flags(output_dir=folder, save_every_steps=1, save_total_limit=0, **overrides, **resume)]
    child = subprocess.Popen(
        [*launcher(processes), *arguments], env=environment(), stdout=-1, stderr=-1, start_new_session=True
    )
    wait_for(folder / f"checkpoint-{moments.randint(after + 1, after + 5):08d}", child)
    time.sleep(moments.uniform(0, 0.6))
    kill_all(folder)
    child.communicate(timeout=60)


def resumed_equals_straight(tmp_path: Path, processes: int, num_workers: int, kills: int, **overrides) -> None:
    options = {"num_workers": num_workers, "batch_size": 32 // processes, **overrides}
    straight = run([TRAIN, *flags(output_dir=tmp_path / "straight", **options)], processes=processes)
    # One progress bar, with all that it should say
    assert len(re.findall(r"0/\d+ \[00:00<\?, \?step/s\]", straight.stderr)) == 1
    assert re.search(r"\[[\d:]+<[\d:]+, .*img_s=\d+, loss=\d\.\d+, lr=\d", straight.stderr)
    folder, moments = tmp_path / "killed", random.Random(10 * processes + num_workers)
    after = 0
    for _ in range(kills):
        kill_at_random(folder, moments, after, processes, **options)
        after = int(list_checkpoints(folder)[-1].name.removeprefix("checkpoint-"))
    result = run(
        [TRAIN, *flags(output_dir=folder, save_every_steps=1, resume_from_checkpoint="latest", **options)],
        processes=processes,
    )
    assert re.search(rf"Resumed from .*step {after}\)", result.stdout)
    reports = [json.loads((path / "run.json").read_text()) for path in (tmp_path / "straight", folder)]
    assert all(report["world_size"] == processes for report in reports)
    for name in ("steps", "trained", "skipped", "dropped", "metrics", "best_metrics", "data_fingerprint"):
        assert reports[0][name] == reports[1][name], name
    assert_equal_weights(folder, tmp_path / "straight")


def test_two_processes_with_workers_killed_and_resumed(tmp_path):
    """The full machinery: EMA, repeats, accumulation, mixing, RandAugment, erasing, drop path, shuffling."""
    full = {"ema_decay": 0.9, "repeated_augmentation": 2, "gradient_accumulation_steps": 2, "samples_per_epoch": 384}
    resumed_equals_straight(tmp_path, processes=2, num_workers=1, kills=1, **full, batch_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_twice_at_random_steps(tmp_path, processes, num_workers):
    resumed_equals_straight(tmp_path, processes, num_workers, kills=2)


@pytest.mark.slow
def test_a_scheduler_stops_two_processes_cleanly(tmp_path):
    """SIGTERM to torchrun, which hands it on to both: one decision, one checkpoint, and an exact resume."""
    options = {"batch_size": 16, "num_workers": 1}
    run([TRAIN, *flags(output_dir=tmp_path / "straight", **options)], processes=2)
    kill_at_step(tmp_path / "stopped", 3, signal.SIGTERM, processes=2, **options)
    assert list_checkpoints(tmp_path / "stopped") and not (tmp_path / "stopped" / "run.json").exists()
    run([TRAIN, *flags(output_dir=tmp_path / "stopped", resume_from_checkpoint="latest", **options)], processes=2)
    assert_equal_weights(tmp_path / "stopped", tmp_path / "straight")


@pytest.mark.slow
def test_the_full_recipe_learns_and_survives_a_kill(tmp_path):
    """
    `digits_pvt_full.yaml` in two processes: mixup, CutMix, RandAugment, erasing, drop path, repeats, EMA. Above 98 % on
    digits it has not seen, and the same bits after a SIGKILL half-way.
    """
    recipe = [TRAIN, str(ROOT / "scripts" / "recipes" / "digits_pvt_full.yaml"), "--output_dir"]
    run([*recipe, str(tmp_path / "straight")], processes=2, timeout=1500)
    report = json.loads((tmp_path / "straight" / "run.json").read_text())
    assert report["world_size"] == 2 and report["metrics"]["eval_samples"] == 355
    assert report["metrics"]["accuracy@1"] > 0.98
    child = subprocess.Popen(
        [*launcher(2), *recipe, str(tmp_path / "killed"), "--save_every_steps", "50"],
        env=environment(), stdout=-1, stderr=-1, start_new_session=True,
    )  # fmt: skip
    wait_for(tmp_path / "killed" / "checkpoint-00000750", child)
    kill_all(tmp_path / "killed")
    child.communicate(timeout=60)
    again = [*recipe, str(tmp_path / "killed"), "--resume_from_checkpoint", "latest"]
    assert "step 750)" in run(again, processes=2, timeout=1500).stdout
    assert_equal_weights(tmp_path / "killed", tmp_path / "straight")
