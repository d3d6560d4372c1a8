"""
The trained models in the package: small, open by name, and right about digits that they have not seen.

    python -m pytest tests/weights/test_samples.py
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

import pvt_hf
from pvt_hf.data.digits import SCENE_CLASS_NAMES, digit_scenes
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.inference.prediction import open_pipeline
from pvt_hf.tasks import get_task
from pvt_hf.tasks.detection.settings import DetectionEvaluationSettings
from pvt_hf.tasks.segmentation.settings import SegmentationEvaluationSettings
from pvt_hf.weights.paths import check_model_path, sample


SAMPLES = ("digits-segmenter", "digits-detector")
SCENES = "--dataset digit-scenes --split test --scene_size 96 --digit_sizes 30 54 --cpu true --num_workers 0".split()


@pytest.fixture(scope="module")
def scene():
    """The picture in the folders, with its truth: scripts/make_samples.py draws it from held-out digits."""
    return list(digit_scenes("test", 192, 256, digit_sizes=(60, 100), length=4))[3]


@pytest.mark.parametrize("name", SAMPLES)
def test_what_travels_in_the_wheel(name, scene):
    folder = Path(pvt_hf.sample(name))
    names = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "run.json", "scene.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "model.safetensors").stat().st_size <= 4_000_000
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.bfloat16}
    run = json.loads((folder / "run.json").read_text())
    assert f"scripts/recipes/{name.replace('-', '_')}.yaml" in run["command"]
    assert not re.search(r'"/\w+/', (folder / "run.json").read_text()), "a path of the machine it was made on"
    card = (folder / "README.md").read_text()
    trained = " ".join(run["command"]).replace("./", "")
    assert trained in re.sub(r"\s*\\\n\s*", " ", card)
    assert f'pvt_hf.sample("{name}")' in card and "## Evaluation" in card and "license: apache-2.0" in card
    assert np.array_equal(np.asarray(Image.open(folder / "scene.png")), np.asarray(scene["image"]))


def test_the_segmenter_segments(scene):
    """Through the pipeline, at another size and shape than those of its training."""
    folder = pvt_hf.sample("digits-segmenter")
    segmenter = pipeline("image-segmentation", model=folder)
    assert segmenter.model.dtype == torch.float32
    truth = np.asarray(scene["semantic_map"])
    found = {segment["label"]: np.asarray(segment["mask"]) > 0 for segment in segmenter(f"{folder}/scene.png")}
    overlaps = []
    for label in np.unique(truth):
        true, mask = truth == label, found.get(SCENE_CLASS_NAMES[label], np.zeros(truth.shape, bool))
        overlaps.append((true & mask).sum() / (true | mask).sum())
    assert np.mean(overlaps) > 0.6


def test_the_detector_detects(scene):
    folder = pvt_hf.sample("digits-detector")
    detector = pipeline("object-detection", model=folder)
    found = detector(f"{folder}/scene.png", threshold=0.5)
    objects = scene["objects"]
    hits = 0
    for (left, top, width, height), category in zip(objects["bbox"], objects["category"], strict=True):
        for one in found:
            box = one["box"]
            across = min(left + width, box["xmax"]) - max(left, box["xmin"])
            down = min(top + height, box["ymax"]) - max(top, box["ymin"])
            common = max(across, 0) * max(down, 0)
            union = width * height + (box["xmax"] - box["xmin"]) * (box["ymax"] - box["ymin"]) - common
            hits += one["label"] == str(category) and common > 0.5 * union
    assert hits >= 0.8 * len(objects["bbox"]) and len(found) <= 1.5 * len(objects["bbox"])


def test_commands_take_them_by_name():
    task, detector = open_pipeline("sample:digits-detector")
    assert task == "instance-segmentation" and detector.model.num_parameters() < 2_000_000
    check_model_path("sample:digits-segmenter")
    for call, name in ((sample, "letters"), (check_model_path, "sample:letters"), (sample, ""), (sample, "../samples"),
                       (sample, None)):  # fmt: skip
        with pytest.raises(FileNotFoundError, match="no sample .*: choose one of digits-detector, digits-segmenter"):
            call(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, task, settings, metric",
    [
        ("digits-segmenter", "semantic-segmentation", SegmentationEvaluationSettings, "mean_iou"),
        ("digits-detector", "object-detection", DetectionEvaluationSettings, "ap"),
    ],
)
def test_the_figures_of_the_card(name, task, settings, metric):
    report = evaluate_checkpoint(get_task(task), parse_arguments(settings, ["--model", f"sample:{name}", *SCENES]))
    first = float(re.search(r"\| default \| ([\d.]+) \|", (Path(sample(name)) / "README.md").read_text())[1])
    # In percent; other kernels round differently, and a pixel at an edge flips
    assert 100 * report["results"][metric] == pytest.approx(first, abs=0.5)
