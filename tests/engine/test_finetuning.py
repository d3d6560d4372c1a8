"""
Fine-tuning with Transformers' Trainer on a stream: it resumes at the sample where it stopped, also after a kill inside
a save; its steps are those that come; a full disk is named.

    pytest tests/engine/test_finetuning.py
"""

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from pvt_hf import PvtForImageClassification, PvtImageProcessor
from pvt_hf.commands.finetune import parse_arguments
from pvt_hf.engine import disk, finetuning
from pvt_hf.engine.checkpoints import ensure_output_dir

from ..support.common import tiny_pvt_config
from ..support.training_runs import make_photos


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A function from an output folder and more words to the arguments of `finetune`. 30 images, one damaged."""
    root = tmp_path_factory.mktemp("inputs")
    for split in ("train", "validation"):
        photos = make_photos(root / "photos" / split, 15)
        (photos / "leaf" / "7.jpg").write_bytes(b"no image")
    torch.manual_seed(0)
    PvtForImageClassification(tiny_pvt_config(image_size=32, depths=[1, 1, 1, 1])).save_pretrained(root / "pvt")
    PvtImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(root / "pvt")
    fixed = ["--model", root / "pvt", "--dataset", root / "photos", "--use_cpu", "--max_bad_share", "0.1"]

    def arguments(output, *more):
        words = [*fixed, "--output_dir", output, *more]
        return parse_arguments("image-classification", list(map(str, words)))

    return arguments


def equal_weights(one: Path, other: Path) -> bool:
    expected = load_file(other / "model.safetensors")
    return all(torch.equal(tensor, expected[name]) for name, tensor in load_file(one / "model.safetensors").items())


class Killed(BaseException):
    """What no handler catches, as a kill."""


def recorded(monkeypatch) -> list[list[str]]:
    """The sample ids of each batch, as Trainer's steps get them."""
    seen, real = [], finetuning.StreamTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        seen.append(list(inputs["sample_ids"]))
        return real(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(finetuning.StreamTrainer, "training_step", training_step)
    return seen


@pytest.mark.parametrize("moment", ["trainer_state.json", "optimizer.pt", "stream_0.pt"])
def test_a_kill_in_a_save_resumes_at_the_sample_of_the_one_before(arguments, tmp_path, monkeypatch, moment):
    """At the second save, before the file `moment` is written. Sample for sample, the run is then the straight one."""
    seen = recorded(monkeypatch)
    options = (
        "--max_steps", 8, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--save_steps", 3,
        "--eval_strategy", "no", "--load_best_model_at_end", False, "--save_total_limit", 1, "--shuffle_window", 8,
    )  # fmt: skip
    finetuning.finetune(*arguments(tmp_path / "straight", *options))
    straight, target = list(seen), "save_to_json" if moment == "trainer_state.json" else "save"
    seen.clear()
    owner = TrainerState if moment == "trainer_state.json" else torch
    real, writes = getattr(owner, target), []

    def write(*given, **kwargs):
        writes.extend(name for name in given if Path(str(name)).name == moment and "checkpoint-" in str(name))
        if len(writes) == 2:
            raise Killed
        return real(*given, **kwargs)

    monkeypatch.setattr(owner, target, write)
    with pytest.raises(Killed):
        finetuning.finetune(*arguments(tmp_path / "run", *options))
    monkeypatch.setattr(owner, target, real)
    assert seen == straight[:12] and not (tmp_path / "run" / "checkpoint-6" / "trainer_state.json").exists()
    with pytest.raises(FileNotFoundError, match="checkpoint-6: it has no .*run/checkpoint-3"):
        finetuning.finetune(
            *arguments(tmp_path / "run", *options, "--resume_from_checkpoint", tmp_path / "run" / "checkpoint-6")
        )
    seen.clear()
    finetuning.finetune(*arguments(tmp_path / "run", *options, "--resume_from_checkpoint", "latest"))
    assert seen == straight[6:]
    assert equal_weights(tmp_path / "run", tmp_path / "straight")


def test_checkpoints_that_are_not_there(arguments, tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint-48: there is no such folder. .* can resume: none"):
        finetuning.finetune(*arguments(tmp_path, "--max_steps", 1, "--resume_from_checkpoint", "checkpoint-48"))


@pytest.mark.parametrize("file", ["trainer_state.json", "loop_state.json"])
def test_checkpoints_of_an_earlier_run_are_not_mixed_with_new_ones(arguments, tmp_path, file):
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / file).write_text("{}")
    own = {"finetune": file == "trainer_state.json", "train": file == "loop_state.json"}
    refused = {True: "of an earlier run: .*--resume_from_checkpoint latest", False: "has checkpoints of pvt-hf"}
    with pytest.raises(FileExistsError, match=refused[own["finetune"]]):
        finetuning.finetune(*arguments(tmp_path, "--max_steps", 1))
    with pytest.raises(FileExistsError, match=refused[own["train"]]):
        ensure_output_dir(tmp_path, "")
    if own["train"]:
        assert ensure_output_dir(tmp_path, "latest") == tmp_path
    else:  # those of another command cannot be continued
        with pytest.raises(FileExistsError, match="has checkpoints of pvt-hf finetune: choose another --output_dir"):
            ensure_output_dir(tmp_path, "latest")
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["checkpoint-8"]


def test_a_full_disk_is_named(arguments, tmp_path, monkeypatch):
    real = torch.save

    def save(value, file, *given, **kwargs):
        if str(file).endswith("optimizer.pt"):
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        return real(value, file, *given, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr(disk, "_probe", lambda folder: errno.ENOSPC)
    few = ("--max_steps", 1, "--per_device_train_batch_size", 2, "--save_steps", 1, "--eval_steps", 1)
    with pytest.raises(OSError, match="Could not save .*checkpoint-1: the disk is full: .* free, .* needed"):
        finetuning.finetune(*arguments(tmp_path, *few))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_early_stopping_counts_on_after_a_resume(arguments, tmp_path, monkeypatch):
    """The third evaluation is the second in a row that is not better, in a straight run and in a resumed one."""
    few = (
        "--max_steps", 9, "--per_device_train_batch_size", 2, "--eval_steps", 1, "--save_steps", 1, "--patience", 2
    )  # fmt: skip
    answers = []

    def evaluate(*given, **kwargs):
        if not answers:
            raise Killed
        return {"accuracy@1": answers.pop(0), "eval_samples": 1, "eval_skipped": 0}

    def steps(folder):
        return TrainerState.load_from_json(folder / "checkpoint-3" / "trainer_state.json").global_step

    monkeypatch.setattr(finetuning, "evaluate", evaluate)
    answers[:] = [0.5, 0.4, 0.5, 0.5]  # the last one is that of the best checkpoint, loaded at the end
    finetuning.finetune(*arguments(tmp_path / "straight", *few))
    answers[:] = [0.5, 0.4]
    with pytest.raises(Killed):
        finetuning.finetune(*arguments(tmp_path / "killed", *few))
    answers[:] = [0.5, 0.5]
    finetuning.finetune(*arguments(tmp_path / "killed", *few, "--resume_from_checkpoint", "latest"))
    for name in ("straight", "killed"):
        assert not answers and steps(tmp_path / name) == 3 and not (tmp_path / name / "checkpoint-4").exists()
        assert equal_weights(tmp_path / name, tmp_path / name / "checkpoint-1")
    with pytest.raises(ValueError, match="--patience 2 counts evaluations: it needs --eval_strategy"):
        finetuning.finetune(
            *arguments(tmp_path / "none", *few, "--eval_strategy", "no", "--load_best_model_at_end", False)
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_steps_of_epochs_are_those_that_come(arguments, tmp_path, num_workers):
    """30 files, one damaged: two workers fill 3 batches of 4 each, one process 7."""
    given = arguments(
        tmp_path, "--num_train_epochs", 2, "--per_device_train_batch_size", 4, "--dataloader_num_workers", num_workers
    )
    trainer, training = finetuning.make_trainer(*given), given[-1]
    assert training.max_steps == 2 * (3 + 3 if num_workers else 7)
    assert sum(1 for _ in trainer.train_dataset) == training.max_steps // 2
