"""
The examples of docs/segmentation.md for UperNet and Mask2Former with a PVT backbone run as they are printed, but for a
tiny backbone and few scenes: they learn, and what they save is opened by Auto classes and the pipeline.

    python -m pytest tests/models/test_segmentation_frameworks.py
"""

import numpy as np
import pytest
from PIL import Image
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerForUniversalSegmentation,
    UperNetForSemanticSegmentation,
    pipeline,
)

from pvt_hf import PvtBackbone
from pvt_hf.data.digits import SCENE_CLASS_NAMES
from pvt_hf.engine.run import train
from pvt_hf.engine.settings import parse_arguments
from pvt_hf.tasks.segmentation import streams as segmentation_streams
from pvt_hf.tasks.segmentation.settings import SegmentationSettings
from pvt_hf.tasks.segmentation.task import SegmentationTask

from ..support.page_examples import assert_same_after_reloading, work_small
from ..support.pages import block_with, commands


pytestmark = pytest.mark.slow
PAGE = "segmentation.md"


@pytest.fixture
def work(tmp_path, monkeypatch):
    work_small(tmp_path, monkeypatch, segmentation_streams)
    return tmp_path


def assert_covers(segments, width: int, height: int) -> None:
    """Every pixel is in exactly one mask, and no class has two masks."""
    labels = [segment["label"] for segment in segments]
    assert labels and len(set(labels)) == len(labels) and set(labels) <= set(SCENE_CLASS_NAMES)
    total = sum(np.asarray(segment["mask"]).astype(int) for segment in segments)
    assert total.shape == (height, width) and np.all(total == 255)


def test_upernet(work):
    names = {"__name__": "example"}
    exec(block_with("UperNetConfig", PAGE), names)
    assert type(names["model"]) is UperNetForSemanticSegmentation
    assert_same_after_reloading(
        AutoModelForSemanticSegmentation, names["model"], work / "models" / "upernet", ["logits"], SCENE_CLASS_NAMES
    )

    (command,) = commands(block_with("models/upernet", PAGE, "bash"))
    assert command[:2] == ["pvt-hf", "train-semantic-segmentation"]
    short = "--epochs 1 --batch_size 4 --warmup_epochs 0 --shuffle_window 16 --log_every_steps 3 --num_workers 0 --cpu"
    report = train(SegmentationTask(), parse_arguments(SegmentationSettings, [*command[2:], *short.split()]))
    losses = [entry["loss"] for entry in report["history"] if "loss" in entry]
    # Most pixels are background, which is learnt first
    assert report["steps"] == 21 and losses[0] < 1.2 * np.log(11) and losses[-1] < 0.8 * losses[0], losses
    assert report["skipped"] == 0
    out = work / "outputs" / "upernet"
    trained = AutoModelForSemanticSegmentation.from_pretrained(out)
    assert sum(isinstance(module, PvtBackbone) for module in trained.modules()) == 1
    assert_covers(pipeline("image-segmentation", model=str(out))(Image.new("RGB", (75, 50))), 75, 50)


def test_mask2former(work, capsys):
    code, full = block_with("Mask2FormerConfig", PAGE), "length=8000), 8,"
    assert full in code
    names = {"__name__": "example"}
    exec(code.replace(full, "length=84), 4,"), names)
    losses = dict(line.split() for line in capsys.readouterr().out.splitlines())
    losses = [float(losses[step]) for step in ("0", "10", "20")]
    model = names["model"]
    assert type(model) is Mask2FormerForUniversalSegmentation and losses[-1] < 0.8 * losses[0], losses
    out, keys = work / "outputs" / "mask2former", ["class_queries_logits", "masks_queries_logits"]
    assert_same_after_reloading(AutoModelForUniversalSegmentation, model, out, keys, SCENE_CLASS_NAMES)
    segments = pipeline("image-segmentation", model=str(out))(Image.new("RGB", (75, 50)), subtask="semantic")
    assert_covers(segments, 75, 50)
