"""
Fine-tuning of Semantic FPN with Transformers' Trainer on a stream: a new head on a classifier, mean IoU as the engine's
own evaluation gives it, the best checkpoint and its reload, unusable samples, and a segmenter with other classes.

    pytest tests/scripts/test_finetune_segmentation.py
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from pvt_hf import PvtForImageClassification, PvtImageProcessor, SemanticFpnForSemanticSegmentation
from pvt_hf.tasks.segmentation.evaluate import SegmentationEvaluationSettings
from pvt_hf.tasks.segmentation.evaluate import run as evaluate_checkpoint

from ..support.common import tiny_pvt_config
from ..support.warm_processes import run as launch


SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))  # where Python looks when it runs a script
        spec = importlib.util.spec_from_file_location("finetune_seg", SCRIPTS / "finetune_segmentation_with_trainer.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sky above land of two kinds, told apart by colour, of different sizes; a mask with a label that is no class."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    colors = np.array([(60, 90, 220), (200, 180, 60), (40, 160, 60)])
    for split, count in (("training", 16), ("validation", 5)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count + 1):
            height, width = rng.integers(50, 90, 2)
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[height // 2 :, : width // 2], mask[height // 2 :, width // 2 :] = rng.permutation([1, 2])
            image = np.clip(colors[mask] + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask + 7 * (index == count)).save(root / "annotations" / split / f"{index}.png")
    return root


def arguments(model: Path, pictures: Path, output: Path, *more: object) -> list[str]:
    sizes = ["--shortest_edge", 64, "--longest_edge", 96, "--crop_size", 64, "--min_scale", 1, "--max_scale", 1]
    given = ["--model", model, "--dataset", pictures, "--output_dir", output, "--max_bad_share", 0.05, "--use_cpu"]
    return [*map(str, (*given, *sizes, *more)), "--disable_tqdm", "True"]


def run(script, *given: object) -> dict:
    return script.main(*script.parse_arguments(arguments(*given)))


def save_classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    PvtForImageClassification(tiny_pvt_config(depths=[1, 1, 1, 1])).save_pretrained(folder)
    PvtImageProcessor().save_pretrained(folder)
    return folder


def evaluate(model: Path, pictures: Path) -> dict:
    """By the engine's own evaluation, at the images' own sizes."""
    return evaluate_checkpoint(
        SegmentationEvaluationSettings(
            model=str(model), dataset=str(pictures), class_names="sky,sand,grass", cpu=True, num_workers=0,
            max_bad_share=0.05,
        )
    )["results"]  # fmt: skip


def test_a_new_head_then_other_classes(script, pictures, tmp_path, capsys):
    base, out = save_classifier(tmp_path / "base"), tmp_path / "out"
    metrics = run(
        script, base, pictures, out, "--class_names", "sky,sand,grass", "--max_steps", 24, "--learning_rate", 2e-3,
        "--per_device_train_batch_size", 4, "--eval_steps", 8, "--save_steps", 8, "--save_total_limit", 3,
    )  # fmt: skip
    state = json.loads((out / "trainer_state.json").read_text())
    figures = {}
    for entry in state["log_history"]:
        if "eval_mean_iou" in entry:
            figures.setdefault(entry["step"], entry["eval_mean_iou"])  # after the last step comes the best checkpoint's
    assert figures.keys() == {8, 16, 24} and len(set(figures.values())) == 3
    assert metrics["eval_mean_iou"] == state["best_metric"] == max(figures.values()) > 0.5  # two of three are learnt
    best = max(figures, key=figures.get)
    saved, chosen = (load_file(folder / "model.safetensors") for folder in (out, out / f"checkpoint-{best}"))
    assert saved.keys() == chosen.keys() and all(torch.equal(saved[name], chosen[name]) for name in saved)
    assert (metrics["eval_samples"], metrics["eval_skipped"]) == (5, 1)
    printed = capsys.readouterr()
    assert "tensors loaded" in printed.out and "grass" in printed.out and "annotations" not in printed.err
    assert "skipped" in printed.err and "labels 7, 8, 9" in printed.err

    reloaded = AutoModelForSemanticSegmentation.from_pretrained(out)
    assert type(reloaded) is SemanticFpnForSemanticSegmentation
    assert reloaded.config.id2label == {0: "sky", 1: "sand", 2: "grass"}
    assert AutoImageProcessor.from_pretrained(out).size["shortest_edge"] == 64
    again = evaluate(out, pictures)  # the same integers
    assert again["classes"] == metrics["eval_classes"]
    assert again["classes"] == json.loads((out / "all_results.json").read_text())["eval_classes"]
    assert metrics["eval_mean_iou"] == again["mean_iou"]

    # A segmenter whose classes are others: five of them, evaluated in batches of one size
    more = ("--class_names", "a,b,c,d,e", "--max_steps", 1, "--eval_steps", 1, "--save_steps", 1)
    second = run(
        script, out, pictures, tmp_path / "five", *more, "--eval_size", 64, "--per_device_eval_batch_size", 3,
        "--per_device_train_batch_size", 2,
    )  # fmt: skip
    assert [row["name"] for row in second["eval_classes"]] == list("abcde") and second["eval_samples"] == 5
    assert sum(row["pixels"] for row in second["eval_classes"]) == 5 * 64 * 64
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "five")
    assert model.head.classifier.out_channels == 5
    with pytest.raises(ValueError, match="--per_device_eval_batch_size 1, or on images of one size, --eval_size"):
        run(script, out, pictures, tmp_path / "uneven", *more, "--per_device_eval_batch_size", 3)


def test_two_processes_evaluate_the_model_that_is_saved(pictures, tmp_path):
    """Each has BatchNorm's statistics of its own images; those of the main process are saved."""
    square, out = tmp_path / "square", tmp_path / "out"
    for file in pictures.rglob("*.png"):
        target = square / file.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((64, 64), Image.Resampling.NEAREST).save(target)
    more = arguments(
        save_classifier(tmp_path / "base"), square, out, "--class_names", "sky,sand,grass", "--max_steps", 4,
        "--learning_rate", 2e-3, "--per_device_train_batch_size", 2, "--eval_steps", 2, "--save_steps", 2,
        "--eval_size", 64, "--load_best_model_at_end", False,
    )  # fmt: skip
    launch([SCRIPTS / "finetune_segmentation_with_trainer.py", *more], 2)
    state = json.loads((out / "trainer_state.json").read_text())
    logged = {entry["step"]: entry["eval_mean_iou"] for entry in state["log_history"] if "eval_mean_iou" in entry}
    assert logged.keys() == {2, 4} and 0 < logged[2] != logged[4]
    for step, mean_iou in logged.items():
        checkpoint = out / f"checkpoint-{step}"
        AutoImageProcessor.from_pretrained(out).save_pretrained(checkpoint)
        assert evaluate(checkpoint, square)["mean_iou"] == pytest.approx(mean_iou, abs=1e-12)
