"""
Interrupted training: killed at any moment and resumed it ends with the bits of the uninterrupted run; saves are whole
or not there; signals save and exit.

    pytest tests/engine/test_resume.py              # the smaller cases
    pytest tests/engine/test_resume.py -m slow      # the whole matrix of processes and workers, killed twice
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from pvt_hf.data.streams import StreamError
from pvt_hf.engine import loop
from pvt_hf.engine.checkpoints import list_checkpoints

from ..support.training_runs import (
    TRAIN,
    assert_equal_weights,
    flags,
    kill_at_step,
    make_photos,
    run_patched,
    train_here,
)
from ..support.warm_processes import ROOT, Launched, run


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
real, calls = checkpoints.os.fsync, []
def fsync(handle):
    real(handle)
    calls.append(handle)
    if "checkpoint-00000008" in os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}"):
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.os.fsync = fsync
"""
    assert run_patched(patch, tmp_path).returncode == -signal.SIGKILL
    out = tmp_path / "out"
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-00000004"]
    assert list(out.glob(".checkpoint-00000008*"))
    result = run([TRAIN, *flags(output_dir=out, save_every_steps=4, resume_from_checkpoint="latest")])
    assert "checkpoint-00000004 (epoch 0, step 4)" in result.stdout and not list(out.glob(".checkpoint*"))
    assert_equal_weights(out, straight_run)


def kill_all(child: Launched, folder: Path) -> None:
    """SIGKILL to every process of a run: those of its session, and torchrun's children, which name its `folder`."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone in the meantime
            session = int((process / "stat").read_text().rpartition(")")[2].split()[3])
            if session == child.pid or str(folder).encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
    child.wait(60)


def kill_at_random(folder: Path, moments: random.Random, after: int, processes: int, warm: bool, **overrides) -> None:
    """Kills every process of a run at a random moment after the checkpoint of a random step beyond `after`."""
    resume = {"resume_from_checkpoint": "latest"} if after else {}
    arguments = [TRAIN, *flags(output_dir=folder, save_every_steps=1, save_total_limit=0, **overrides, **resume)]
    child = Launched(arguments, processes, warm)
    child.wait_for(folder / f"checkpoint-{moments.randint(after + 1, after + 5):08d}")
    time.sleep(moments.uniform(0, 0.6))
    kill_all(child, folder)


def resumed_equals_straight(
    tmp_path: Path, processes: int, num_workers: int, kills: int, warm: bool, **overrides
) -> None:
    options = {"num_workers": num_workers, "batch_size": 32 // processes, **overrides}
    straight = run([TRAIN, *flags(output_dir=tmp_path / "straight", **options)], processes, warm=warm)
    # Off a terminal: a line for each point of the curve, from one process, and no progress bar
    steps = re.findall(r"^step (\d+)/\d+: loss \d\.\d+, lr \d\S*, img_s \d+$", straight.stdout, re.MULTILINE)
    assert steps[0] == "1" and len(steps) == len(set(steps)) and "\r" not in straight.stdout + straight.stderr
    folder, moments = tmp_path / "killed", random.Random(10 * processes + num_workers)
    after = 0
    for _ in range(kills):
        kill_at_random(folder, moments, after, processes, warm, **options)
        after = int(list_checkpoints(folder)[-1].name.removeprefix("checkpoint-"))
    result = run(
        [TRAIN, *flags(output_dir=folder, save_every_steps=1, resume_from_checkpoint="latest", **options)],
        processes,
        warm=warm,
    )
    assert re.search(rf"Resumed from .*step {after}\)", result.stdout)
    reports = [json.loads((path / "run.json").read_text()) for path in (tmp_path / "straight", folder)]
    assert all(report["world_size"] == processes for report in reports)
    for name in ("steps", "trained", "skipped", "dropped", "metrics", "best_metrics", "data_fingerprint"):
        assert reports[0][name] == reports[1][name], name
    assert_equal_weights(folder, tmp_path / "straight")
    if overrides.get("keep_best"):
        assert_equal_weights(folder / "best", tmp_path / "straight" / "best")
        best = [(path / "best" / "best.json").read_text() for path in (folder, tmp_path / "straight")]
        assert best[0] == best[1] and json.loads(best[0])["evaluation"]["step"] == reports[0]["best_step"]


@pytest.mark.slow
def test_two_processes_with_workers_killed_and_resumed(tmp_path):
    """
    The full machinery: EMA, repeats, accumulation, mixing, RandAugment, erasing, drop path, shuffling, evaluations
    within an epoch, the best model.
    """
    full = {"ema_decay": 0.9, "repeated_augmentation": 2, "gradient_accumulation_steps": 2, "samples_per_epoch": 192}
    full |= {"eval_every_steps": 5, "keep_best": True}
    resumed_equals_straight(tmp_path, processes=2, num_workers=1, kills=1, warm=True, **full, batch_size=8)


def test_a_resume_says_what_differs_and_what_is_damaged(tmp_path):
    """In this process: other settings, an epoch that is over, files that are missing or cut off, a finished run."""
    photos = make_photos(tmp_path / "photos", 16)
    options = {"save_every_steps": 2, "save_total_limit": 0, "eval_every_epochs": 2}
    straight, report = train_here(photos, tmp_path / "run", **options)
    assert report["steps"] == 8

    def resume(name, **overrides):
        return train_here(photos, tmp_path / "run", resume_from_checkpoint=name, **options | overrides)

    middle = str(tmp_path / "run" / "checkpoint-00000006")
    again, _ = resume(middle)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with pytest.raises(ValueError, match="trained for 2 epochs, beyond --epochs 1"):
        resume("latest", epochs=1)
    with pytest.raises(ValueError, match="--seed was 0, is 1"):
        resume(middle, seed=1)
    for file in ("loop_state.json", "model.safetensors", "optimizer.bin", "stream_0.pt", "random_states_0.pkl"):
        damaged = tmp_path / "run" / "checkpoint-00000099"
        for damage in ("cut", "gone") if file != "loop_state.json" else ("cut",):
            shutil.copytree(middle, damaged)
            (damaged / file).write_bytes((damaged / file).read_bytes()[:20])
            if damage == "gone":
                (damaged / file).unlink()
            with pytest.raises(OSError, match="00000099 is damaged and cannot be resumed .*checkpoint-00000008"):
                resume("latest")
            shutil.rmtree(damaged)


def test_what_has_changed_is_printed(tmp_path, capsys):
    photos = make_photos(tmp_path / "photos", 16)
    train_here(photos, tmp_path / "run", save_every_steps=6, save_total_limit=0)
    middle = str(tmp_path / "run" / "checkpoint-00000006")
    train_here(photos, tmp_path / "run", learning_rate=1e-2, resume_from_checkpoint=middle)
    assert "Settings changed since checkpoint-00000006: --learning_rate was 0.001, is 0.01." in capsys.readouterr().out
    train_here(photos, tmp_path / "run", learning_rate=1e-2, resume_from_checkpoint="latest")
    assert "The training is already complete" in capsys.readouterr().out


def test_after_unusable_samples_were_removed_or_repaired(tmp_path, capsys):
    """As the messages advise. Repaired in place, the resume is exact; after a removal it has to be asked for."""
    photos = make_photos(tmp_path / "photos", 16)
    broken = photos / "leaf" / "12.jpg"
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    options = {"save_every_steps": 1, "save_total_limit": 0, "max_bad_share": 0.0}
    with pytest.raises(StreamError, match="step 2: repair the data and continue.*--resume_with_changed_data"):
        train_here(photos, tmp_path / "run", **options)
    shutil.copytree(tmp_path / "run", tmp_path / "removed")
    broken.write_bytes(content)
    repaired, _ = train_here(photos, tmp_path / "run", resume_from_checkpoint="latest", **options)
    straight, _ = train_here(photos, tmp_path / "straight", **options)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, repaired.state_dict()[name]), name

    broken.unlink()
    resume = {"resume_from_checkpoint": "latest", **options}
    with pytest.raises(ValueError, match=r"32 samples then, 31 now, with the same classes.*resume_with_changed_data"):
        train_here(photos, tmp_path / "removed", **resume)
    capsys.readouterr()
    seen = []
    _, report = train_here(
        photos, tmp_path / "removed", lambda model, batch: seen.extend(batch["labels"].tolist()),
        resume_with_changed_data=True, **resume,
    )  # fmt: skip
    assert "the epoch begins anew, so this resume is not exact" in capsys.readouterr().out
    # Two steps before, and two whole epochs of the 31 that are left: apples come first, unshuffled.
    assert report["steps"] == 2 + 2 * 3 and seen == 2 * ([0] * 16 + [1] * 8)
    assert report["dropped"] >= 0
    train_here(photos, tmp_path / "removed", resume_from_checkpoint="latest", **options)  # now these are its data

    (photos / "leaf").rename(photos / "pear")
    with pytest.raises(ValueError, match="trained on other data: .*the classes differ") as error:
        train_here(photos, tmp_path / "removed", resume_with_changed_data=True, **resume)
    assert "--resume_with_changed_data" not in str(error.value)


def test_resumed_from_an_earlier_checkpoint_the_later_ones_go(tmp_path, capsys):
    """They would be taken for the latest, and kept in place of those that the run saves now."""
    photos = make_photos(tmp_path / "photos", 16)
    train_here(photos, tmp_path / "run", save_every_steps=1, save_total_limit=0)
    capsys.readouterr()
    train_here(
        photos, tmp_path / "run", epochs=1, save_every_steps=1, save_total_limit=1,
        resume_from_checkpoint="checkpoint-00000002",
    )  # fmt: skip
    assert "checkpoint-00000007, checkpoint-00000008: later than this one" in capsys.readouterr().out
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-00000004"]
    with pytest.raises(FileNotFoundError, match="checkpoint-48: there is no such folder.*checkpoint-00000004"):
        train_here(photos, tmp_path / "run", resume_from_checkpoint="checkpoint-48")


def test_a_signal_before_the_first_step_saves_nothing(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos", 16)

    class Stopped(loop.StopSignal):
        def __enter__(self):
            super().__enter__()
            os.kill(os.getpid(), signal.SIGTERM)
            return self

    monkeypatch.setattr(loop, "StopSignal", Stopped)
    _, report = train_here(photos, tmp_path / "run")
    assert report["interrupted"] == "SIGTERM" and report["steps"] == 0 and list_checkpoints(tmp_path / "run") == []


def test_killed_in_an_evaluation_only_the_evaluation_is_done_again(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos", 16)
    straight, expected = train_here(photos, tmp_path / "straight", eval_every_epochs=2)

    def killed(*arguments):
        raise KeyboardInterrupt  # as a kill would: nothing is saved any more

    with monkeypatch.context() as patched:
        patched.setattr(loop._Training, "_evaluated_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train_here(photos, tmp_path / "killed", eval_every_epochs=1)
    steps = []
    again, report = train_here(
        photos, tmp_path / "killed", lambda model, batch: steps.append(1), eval_every_epochs=1,
        resume_from_checkpoint="latest",
    )  # fmt: skip
    assert len(steps) == 4 and report["steps"] == 8  # the second epoch alone
    assert [entry["step"] for entry in report["history"] if "accuracy@1" in entry] == [4, 8]
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_twice_at_random_steps(tmp_path, processes, num_workers):
    resumed_equals_straight(tmp_path, processes, num_workers, kills=2, warm=True)


@pytest.mark.slow
def test_a_scheduler_stops_two_processes_cleanly(tmp_path):
    """SIGTERM to torchrun, which hands it on to both: one decision, one checkpoint, and an exact resume."""
    options = {"batch_size": 16, "num_workers": 1}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run([TRAIN, *flags(output_dir=straight, **options)], processes=2)
    kill_at_step(stopped, 3, signal.SIGTERM, processes=2, warm=False, **options)
    assert list_checkpoints(stopped) and not (stopped / "run.json").exists()
    run([TRAIN, *flags(output_dir=stopped, resume_from_checkpoint="latest", **options)], processes=2, warm=False)
    assert_equal_weights(stopped, straight)


@pytest.mark.slow
def test_the_full_recipe_learns_and_survives_a_kill(tmp_path):
    """
    `digits_pvt_full.yaml` in two processes: mixup, CutMix, RandAugment, erasing, drop path, repeats, EMA. Above 98 % on
    digits it has not seen, and the same bits after a SIGKILL near its end. Until then the killed run is the straight
    one, whose checkpoint is copied.
    """
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    recipe = [TRAIN, str(ROOT / "scripts" / "recipes" / "digits_pvt_full.yaml"), "--save_every_steps", "25"]
    run([*recipe, "--output_dir", straight, "--save_total_limit", 5], processes=2, timeout=1500, warm=False)
    report = json.loads((straight / "run.json").read_text())
    assert report["world_size"] == 2 and report["metrics"]["eval_samples"] == 355
    assert report["metrics"]["accuracy@1"] > 0.98
    copied, after = list_checkpoints(straight)[0].name, list_checkpoints(straight)[1].name
    assert int(copied[-8:]) < int(after[-8:]) < report["steps"]
    shutil.copytree(straight / copied, killed / copied)
    resume = [*recipe, "--output_dir", killed, "--resume_from_checkpoint", "latest", "--save_total_limit", 0]
    child = Launched(resume, processes=2, warm=False)
    child.wait_for(killed / after)
    kill_all(child, killed)
    assert copied in child.output()[0]
    run(resume, processes=2, timeout=1500, warm=False)
    assert_equal_weights(killed, straight)
