"""
The examples of docs/detection.md for Deformable DETR and Mask2Former (instances) with a PVT backbone run as they are
printed, but for a tiny backbone and few scenes: they learn, and what they save is opened by Auto classes, pipelines and
commands.

    python -m pytest tests/models/test_detection_frameworks.py
"""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    DeformableDetrForObjectDetection,
    Mask2FormerForUniversalSegmentation,
    pipeline,
)

from pvt_hf.data.digits import DIGIT_NAMES, digit_scenes
from pvt_hf.engine.evaluation import evaluate_checkpoint
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks.detection import streams as detection_streams
from pvt_hf.tasks.detection.settings import DetectionEvaluationSettings, DetectionSettings
from pvt_hf.tasks.detection.task import DetectionTask

from ..support.page_examples import assert_same_after_reloading, work_small
from ..support.pages import block_with, commands


pytestmark = pytest.mark.slow
PAGE = "detection.md"


@pytest.fixture
def work(tmp_path, monkeypatch):
    work_small(tmp_path, monkeypatch, detection_streams)
    return tmp_path


@torch.no_grad()
def loss_on_scenes(model, processor) -> float:
    """The loss on scenes that were not in training."""
    scenes = list(digit_scenes("test", 64, 64, length=4))
    objects = [scene["objects"] for scene in scenes]
    annotations = [
        {
            "image_id": scene["image_id"],
            "annotations": [{"bbox": b, "category_id": c} for b, c in zip(o["bbox"], o["category"])],
        }
        for scene, o in zip(scenes, objects)
    ]
    return model.eval()(**processor([scene["image"] for scene in scenes], annotations, return_tensors="pt")).loss.item()


def test_deformable_detr(work):
    full = '"shortest_edge": 128'
    code = block_with("DeformableDetrConfig", PAGE)
    assert full in code
    names = {"__name__": "example"}
    exec(code.replace(full, '"shortest_edge": 64'), names)
    model, processor = names["model"], names["processor"]
    assert type(model) is DeformableDetrForObjectDetection
    keys = ["logits", "pred_boxes"]
    assert_same_after_reloading(
        AutoModelForObjectDetection, model, work / "models" / "deformable_detr", keys, DIGIT_NAMES
    )

    (command,) = commands(block_with("models/deformable_detr", PAGE, "bash"))
    assert command[:2] == ["pvt-hf", "train-object-detection"]
    short = "--epochs 1 --batch_size 4 --warmup_epochs 0 --shuffle_window 16 --num_workers 0 --cpu --shortest_edges 64"
    report = train(
        DetectionTask(), parse_arguments(DetectionSettings, [*command[2:], *short.split(), "--learning_rate", "2e-3"])
    )
    assert report["steps"] == 21 and report["metrics"]["eval_samples"] == 8 and report["skipped"] == 0

    out, results = work / "outputs" / "deformable_detr", work / "detections.json"
    evaluate_checkpoint(
        DetectionTask(),
        DetectionEvaluationSettings(
            model=str(out), dataset="digit-scenes", scene_size=64, num_workers=0, cpu=True, results=str(results)
        ),
    )
    assert len(json.loads(results.read_text())) == 8 * 100  # the best of 300 scores of each image
    trained = AutoModelForObjectDetection.from_pretrained(out)
    before, after = (loss_on_scenes(one, processor) for one in (model, trained))
    assert after < 0.8 * before, (before, after)
    # Post-processing as Deformable DETR's own: every query may be of several classes, no box suppresses another
    image = next(iter(digit_scenes("test", 50, 75, length=1)))["image"]
    processor = AutoImageProcessor.from_pretrained(out)
    with torch.no_grad():
        outputs = trained.eval()(**processor(image, return_tensors="pt"))
    scores = outputs.logits[0].sigmoid().flatten().sort(descending=True).values
    threshold = scores[40].item()
    found = pipeline("object-detection", model=str(out), threshold=threshold)(image)
    assert [one["score"] for one in found] == pytest.approx(scores[:40].tolist(), abs=1e-5)
    for one in found:
        box = one["box"]
        assert one["label"] in DIGIT_NAMES
        assert 0 <= box["xmin"] <= box["xmax"] <= 75 and 0 <= box["ymin"] <= box["ymax"] <= 50


def test_mask2former(work, capsys):
    code, full = block_with("Mask2FormerConfig", PAGE), "DataLoader(scenes.dataset, 8,"
    assert full in code
    names = {"__name__": "example"}
    exec(code.replace(full, full.replace("8", "4")), names)
    losses = dict(line.split() for line in capsys.readouterr().out.splitlines())
    losses = [float(losses[step]) for step in ("0", "10", "20")]
    model = names["model"]
    assert type(model) is Mask2FormerForUniversalSegmentation and losses[-1] < 0.8 * losses[0], losses

    out = work / "outputs" / "mask2former_instances"
    keys = ["class_queries_logits", "masks_queries_logits"]
    assert_same_after_reloading(AutoModelForUniversalSegmentation, model, out, keys, DIGIT_NAMES)
    image = next(iter(digit_scenes("test", 50, 75, length=1)))["image"]
    segments = pipeline("image-segmentation", model=str(out))(image, subtask="instance", threshold=0.0)
    assert segments
    for segment in segments:
        mask = np.asarray(segment["mask"])
        assert segment["label"] in DIGIT_NAMES and mask.shape == (50, 75) and set(np.unique(mask)) <= {0, 255}


def test_mask2former_learns_from_the_masks_of_the_objects(work):
    """Batches hold a mask, at the size of the images, and a class for each digit."""
    code = block_with("Mask2FormerConfig", PAGE).split("\noptimizer = ")[0]
    names = {"__name__": "example"}
    exec(code, names)
    scenes = list(names["scenes"].dataset.decode(True).take(2))
    batch = names["collate"](list(names["scenes"].dataset.take(2)))
    assert batch["pixel_values"].shape == (2, 3, 128, 128) and batch["pixel_mask"].all()
    for scene, masks, classes in zip(scenes, batch["mask_labels"], batch["class_labels"], strict=True):
        assert classes.tolist() == scene["objects"]["category"]
        for mask, truth in zip(masks, scene["masks"], strict=True):
            # doubled by the nearest neighbour
            np.testing.assert_array_equal(mask[::2, ::2] * 255, np.asarray(truth))
