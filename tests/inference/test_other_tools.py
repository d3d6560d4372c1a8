"""
Detections in supervision, SAHI and FiftyOne are those of the model.

    python -m pytest tests/inference/test_other_tools.py
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import supervision
from PIL import Image
from sahi.predict import get_prediction, get_sliced_prediction

from pvt_hf.commands import main
from pvt_hf.inference.prediction import find_objects, open_pipeline
from pvt_hf.inference.sliced import SlicedDetector

from ..support.hub_kinds import KINDS
from ..support.pages import block_with


@pytest.fixture(scope="module", params=["retinanet", "mask_rcnn", "detr"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param].model().save_pretrained(folder)
    KINDS[request.param].make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC)


def test_supervision(folder, image):
    task, detector = open_pipeline(str(folder))
    names = detector.model.config.id2label
    found = find_objects(detector, image, 0.05, task == "instance-segmentation")
    detections = supervision.Detections.from_transformers(found.as_transformers(), names)
    assert len(detections) == len(found.labels) > 1
    assert np.array_equal(detections.xyxy, found.boxes_xyxy.numpy())
    assert detections.class_id.tolist() == found.labels
    assert detections.confidence.tolist() == pytest.approx(found.scores)
    assert detections.data["class_name"].tolist() == [names[label] for label in found.labels]
    assert (detections.mask is None) == (task != "instance-segmentation")
    assert found.masks is None or np.array_equal(detections.mask, found.masks.numpy())
    nothing = find_objects(detector, image, 1.0, task == "instance-segmentation")
    assert len(supervision.Detections.from_transformers(nothing.as_transformers(), names)) == 0


def test_sahi(folder, image):
    threshold = 0.05
    sliced = SlicedDetector(str(folder), confidence_threshold=threshold, device="cpu")
    _, detector = open_pipeline(str(folder), "object-detection")
    found = find_objects(detector, image, threshold)
    objects = get_prediction(image, sliced).object_prediction_list
    assert [one.score.value for one in objects] == pytest.approx(found.scores) and len(objects) > 1
    assert [one.category.id for one in objects] == found.labels
    assert np.allclose([one.bbox.to_xyxy() for one in objects], found.boxes_xyxy, atol=1e-3)
    # Two slices: each object of the right half is found in it, and shifted.
    options = {"slice_height": 64, "slice_width": 48, "overlap_height_ratio": 0, "overlap_width_ratio": 0}
    parts = get_sliced_prediction(
        image, sliced, **options, perform_standard_pred=False, postprocess_match_threshold=1.1, verbose=0
    ).object_prediction_list
    right = find_objects(detector, image.crop((48, 0, 96, 64)), threshold)
    boxes = np.array([one.bbox.to_xyxy() for one in parts])
    for box in right.boxes_xyxy.numpy() + [48, 0, 48, 0]:
        assert np.abs(boxes - box).max(axis=1).min() < 1e-2


def test_fiftyone(folder, image, monkeypatch, tmp_path):
    """The example of docs/detection.md, with what it calls of FiftyOne, which is no dependency of the tests."""
    monkeypatch.chdir(tmp_path)
    image.save("scene.png")
    words = ["predict", "--model", folder, "--threshold", 0.05, "scene.png", "--json", "objects.json"]
    monkeypatch.setattr(sys, "argv", ["pvt-hf", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    samples, shown = [], []
    calls = {
        "Detection": dict, "Detections": dict, "Sample": lambda file, **fields: {"file": file, **fields},
        "Dataset": lambda: SimpleNamespace(add_samples=samples.extend), "launch_app": shown.append,
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "fiftyone", SimpleNamespace(**calls))
    exec(block_with("import fiftyone", "detection.md"), {})
    _, detector = open_pipeline(str(folder))
    found = find_objects(detector, image, 0.05)
    ((sample,), (_,)) = samples, shown
    assert sample["file"] == str(tmp_path / "scene.png")
    objects = sample["predictions"]["detections"]
    assert [one["label"] for one in objects] == [detector.model.config.id2label[label] for label in found.labels]
    assert [one["confidence"] for one in objects] == pytest.approx(found.scores, abs=1e-4)
    boxes = np.array([one["bounding_box"] for one in objects]) * [96, 64, 96, 64]  # left, top, width, height in pixels
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, found.boxes_xyxy, atol=0.05)
