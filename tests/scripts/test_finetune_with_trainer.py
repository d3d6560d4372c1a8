"""
Fine-tuning with Transformers' Trainer on a stream: evaluation, the best checkpoint and its reload, LoRA, damaged
images, two processes that use each image once, and lengths that are not known.

    pytest tests/scripts/test_finetune_with_trainer.py
"""

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pvt_hf.tasks.classification.evaluate import EvaluationSettings
from pvt_hf.tasks.classification.evaluate import run as evaluate_checkpoint
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from pvt_hf import PvtForImageClassification, PvtImageProcessor
from pvt_hf.data.batches import StreamError
from pvt_hf.data.samples import ProcessorTransform
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream

from ..support.common import tiny_pvt_config
from ..support.warm_processes import ROOT
from ..support.warm_processes import run as launch


SCRIPT = ROOT / "scripts" / "finetune_with_trainer.py"


def load_script():
    spec = importlib.util.spec_from_file_location("finetune_with_trainer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint with a head of five classes and a processor of 32 pixels."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    PvtForImageClassification(tiny_pvt_config(image_size=32)).save_pretrained(folder)
    PvtImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes told apart by colour: 29 images per split, and a damaged one in each."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    colors = {"apple": ((200, 40, 40), 9), "leaf": ((40, 180, 60), 13), "sky": ((60, 90, 220), 7)}
    for split in ("train", "validation"):
        for name, (color, count) in colors.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(color, 40, (36, 44, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
        (root / split / "leaf" / "broken.png").write_bytes(b"no image")
    return root


def arguments(model: Path, dataset: object, output: Path, *more: object) -> list[str]:
    fixed = ["--use_cpu", "--disable_tqdm", "True", "--horizontal_flip", "0", "--min_scale", "1"]
    return ["--model", str(model), "--dataset", str(dataset), "--output_dir", str(output), *fixed, *map(str, more)]


def run(*given: object) -> dict[str, float]:
    return script.main(*script.parse_arguments(arguments(*given)))


def test_evaluates_keeps_the_best_and_reloads(base, tmp_path):
    """Digits; the accuracy that Trainer reports is that of the engine's own evaluation of the saved folder."""
    out = tmp_path / "out"
    metrics = run(
        base, "digits", out, "--max_steps", 45, "--per_device_train_batch_size", 16, "--learning_rate", 2e-3,
        "--eval_steps", 15, "--save_steps", 15, "--save_total_limit", 3,
    )  # fmt: skip
    state = json.loads((out / "trainer_state.json").read_text())
    accuracies = {
        entry["step"]: entry["eval_accuracy@1"] for entry in state["log_history"] if "eval_accuracy@1" in entry
    }
    assert accuracies.keys() == {15, 30, 45}
    assert metrics["eval_accuracy@1"] == state["best_metric"] == max(accuracies.values()) > 0.3  # chance is 0.1
    assert metrics["eval_samples"] == 355 and metrics["eval_skipped"] == 0
    assert metrics["eval_accuracy@5"] > metrics["eval_accuracy@1"]

    reloaded = AutoModelForImageClassification.from_pretrained(out)
    assert type(reloaded) is PvtForImageClassification
    assert reloaded.config.id2label == {label: str(label) for label in range(10)}
    assert AutoImageProcessor.from_pretrained(out).size["height"] == 32
    again = evaluate_checkpoint(EvaluationSettings(model=str(out), dataset="digits", cpu=True, num_workers=0))
    for name in ("accuracy@1", "accuracy@5"):
        assert again["results"][0][name] == pytest.approx(metrics[f"eval_{name}"], abs=1e-12)


def test_lora_and_the_choice_of_the_best(base, photos, tmp_path):
    """Called "best" is here what has the highest loss: the first of three, and not the last."""
    from peft import PeftModel

    out = tmp_path / "out"
    metrics = run(
        base, photos, out, "--num_train_epochs", 3, "--per_device_train_batch_size", 5, "--learning_rate", 1e-2,
        "--lora_rank", 4, "--eval_steps", 6, "--save_steps", 6, "--save_total_limit", 3,
        "--metric_for_best_model", "loss", "--greater_is_better", "True",
    )  # fmt: skip
    state = json.loads((out / "trainer_state.json").read_text())
    # Steps from the length of the stream: 30 files, the damaged one among them, in batches of 5, three times
    assert state["max_steps"] == state["global_step"] == 18
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    best = max((6, 12, 18), key=losses.get)
    assert best != 18 and Path(state["best_model_checkpoint"]).name == f"checkpoint-{best}"
    saved, chosen, last = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (out, out / f"checkpoint-{best}", out / "checkpoint-18")
    )
    assert all(torch.equal(saved[name], chosen[name]) for name in saved)
    assert any(not torch.equal(saved[name], last[name]) for name in saved)
    assert not (out / "model.safetensors").exists()
    assert metrics["eval_samples"] == 29 and metrics["eval_skipped"] == 1
    # Three passes and the beginning of a fourth, which is needed because a pass has one image less than the files
    assert json.loads((out / "all_results.json").read_text())["train_skipped"] in (3, 4)

    merged = AutoModelForImageClassification.from_pretrained(out / "merged").eval()
    assert merged.config.id2label == {0: "apple", 1: "leaf", 2: "sky"}
    fresh = AutoModelForImageClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    adapted = PeftModel.from_pretrained(fresh, out).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # W x + B (A x) and (W + B A) x, rounded apart
        torch.testing.assert_close(adapted(images).logits, merged(images).logits, atol=1e-4, rtol=1e-4)
    again = evaluate_checkpoint(
        EvaluationSettings(model=str(out / "merged"), dataset=str(photos), cpu=True, num_workers=0, max_bad_share=0.1)
    )
    assert again["results"][0]["accuracy@1"] == pytest.approx(metrics["eval_accuracy@1"], abs=1e-12)


IN_TWO_PROCESSES = """
import json, os, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import finetune_with_trainer as script

seen = []

class Recording(script.StreamTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        seen.append([round(float(image.double().sum()), 6) for image in inputs["pixel_values"]])
        return super().training_step(model, inputs, *args, **kwargs)

script.StreamTrainer = Recording
settings, training = script.parse_arguments(sys.argv[3:])
metrics = script.main(settings, training)
Path(sys.argv[2], f"rank{os.environ['RANK']}.json").write_text(
    json.dumps({"world_size": training.world_size, "metrics": metrics, "seen": seen})
)
"""


def test_two_processes_use_each_image_once(base, photos, tmp_path):
    (tmp_path / "two.py").write_text(IN_TWO_PROCESSES)
    given = arguments(
        base, photos, tmp_path / "out", "--max_steps", 3, "--per_device_train_batch_size", 4, "--learning_rate", 2e-3,
        "--per_device_eval_batch_size", 4, "--eval_steps", 3, "--save_steps", 3, "--dataloader_num_workers", 2,
    )  # fmt: skip
    result = launch([tmp_path / "two.py", SCRIPT.parent, tmp_path, *given], processes=2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["world_size"] == second["world_size"] == 2
    assert [[len(batch) for batch in rank["seen"]] for rank in (first, second)] == [[4, 4, 4]] * 2
    used = [image for rank in (first, second) for batch in rank["seen"] for image in batch]
    assert len(set(used)) == 24  # none twice, within a process or between them
    known = {round(float(tensors["pixel_values"].double().sum()), 6) for tensors in decoded(base, photos, "train")}
    assert len(known) == 29 and len(set(used) & known) == 24

    # 29 evaluation samples divide by neither 2 processes nor batches of 4, and count once each.
    assert first["metrics"]["eval_samples"] == second["metrics"]["eval_samples"] == 29
    alone = evaluate_checkpoint(
        EvaluationSettings(model=str(tmp_path / "out"), dataset=str(photos), cpu=True, num_workers=0, max_bad_share=0.1)
    )
    assert first["metrics"]["eval_accuracy@1"] == second["metrics"]["eval_accuracy@1"]
    assert first["metrics"]["eval_accuracy@1"] == pytest.approx(alone["results"][0]["accuracy@1"], abs=1e-12)
    assert first["metrics"]["eval_skipped"] == 1 and "leaf/broken.png: UnidentifiedImageError" in result.stderr


def decoded(base: Path, photos: Path, split: str) -> list[dict[str, torch.Tensor]]:
    """The samples as the training without augmentation sees them, one by one."""
    stream = open_classification_stream(str(photos), split)
    transform = script.training_transform(
        32, 32, mean=PvtImageProcessor.image_mean, std=PvtImageProcessor.image_std,
        min_scale=1.0, horizontal_flip=0.0, auto_augment=None, random_erasing=0.0,
    )  # fmt: skip
    sample = ClassificationSample(stream, transform)
    return [sample(example) for example in stream.dataset if not example["image"]["path"].endswith("broken.png")]


def test_damaged_images_are_left_out_up_to_a_share(base, tmp_path, capsys):
    """A whole group of eight damaged ones, in the main process and in two loader workers."""
    for name, count in (("left", 8), ("right", 9)):
        (tmp_path / name).mkdir()
        for index in range(count):
            (tmp_path / name / f"{index}.png").write_bytes(b"no image")
    for index in range(9):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / "right" / f"{index}.png")
    stream = open_classification_stream(str(tmp_path))
    sample = ClassificationSample(stream, ProcessorTransform(AutoImageProcessor.from_pretrained(base)))
    encode = script.Encode(stream, sample, max_bad_share=0.5, is_main=True)
    assert [example["labels"].item() for example in encode.apply()] == [1] * 9
    assert (encode.seen.sum(), encode.bad.sum()) == (17, 8)
    assert capsys.readouterr().err.count("skipped ") == 8
    assert (
        len(list(torch.utils.data.DataLoader(encode.apply(seed=1, shuffle_buffer=5), batch_size=None, num_workers=2)))
        == 9
    )
    assert (encode.seen.sum(), encode.bad.sum()) == (34, 16)  # what the workers counted

    model = PvtForImageClassification.from_pretrained(base)
    _, training = script.parse_arguments(
        arguments(base, tmp_path, tmp_path / "out", "--dataloader_num_workers", 4, "--max_steps", 1)
    )
    trainer = script.StreamTrainer(model, training, train_dataset=encode.apply(), eval_dataset=encode.apply())
    assert (trainer.get_eval_dataloader().num_workers, trainer.get_train_dataloader().num_workers) == (1, 4)

    strict = script.Encode(stream, sample, max_bad_share=0.01, is_main=False)
    with pytest.raises(StreamError, match=r"2 of 2 samples of .*allowed share of 1.00%"):
        list(strict.apply())


def test_a_stream_of_unknown_length_needs_max_steps(base, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "validation").mkdir()
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / split / "00.tar", "w") as tar:
            for index in range(6):
                picture = io.BytesIO()
                Image.new("RGB", (40, 40), (40 * index, 0, 0)).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("cls", str(index % 2).encode())):
                    entry = tarfile.TarInfo(f"{index:03d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    given = base, tmp_path, tmp_path / "out", "--class_names", "even,odd", "--per_device_train_batch_size", 2
    with pytest.raises(ValueError, match="does not say how many samples it has: give --max_steps"):
        run(*given)
    metrics = run(*given, "--max_steps", 5, "--eval_steps", 5, "--save_steps", 5)  # more than one pass
    assert metrics["eval_samples"] == 6 and metrics["eval_accuracy@2"] == 1.0


def test_classes_that_differ_between_the_splits(base, photos, tmp_path):
    for split, name in (("train", "apple"), ("train", "leaf"), ("validation", "apple"), ("validation", "pear")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / split / name / "0.png")
    with pytest.raises(ValueError, match=r"different classes; not in both: \['leaf', 'pear'\]"):
        run(base, tmp_path, tmp_path / "out", "--max_steps", 1)


def test_defaults_can_be_overridden(base, tmp_path):
    _, training = script.parse_arguments(arguments(base, "digits", tmp_path))
    assert training.load_best_model_at_end and not training.remove_unused_columns and training.greater_is_better
    given = ("--load_best_model_at_end", "False", "--eval_strategy", "no", "--remove_unused_columns", "True")
    _, training = script.parse_arguments(arguments(base, "digits", tmp_path, *given))
    assert not training.load_best_model_at_end and training.remove_unused_columns
    assert training.eval_strategy == "no" and training.report_to == []
