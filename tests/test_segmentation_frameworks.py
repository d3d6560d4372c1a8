"""
The README's examples of UperNet and Mask2Former with a PVT backbone run as they are printed, but for a tiny backbone
and few scenes: they learn, and what they save is opened by Auto classes and the pipeline.

    python -m pytest tests/test_segmentation_frameworks.py
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerForUniversalSegmentation,
    UperNetForSemanticSegmentation,
    pipeline,
)

import pvt_hf.variants
from pvt_hf import PvtBackbone
from pvt_hf.data import segmentation_streams
from pvt_hf.data.digits import SCENE_CLASS_NAMES
from pvt_hf.training.arguments import parse_arguments
from pvt_hf.training.segmentation import SegmentationSettings, run

from .common import FP32_TOLERANCE, random_images, tiny_pvt_config


README = Path(__file__).parents[1] / "README.md"


def example(word: str, section: str = "Semantic segmentation", language: str = "python") -> str:
    """The block of code in a section of the README that has this word."""
    text = README.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    (block,) = [code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if word in code]
    return block


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working directory, where backbones are tiny and there are few scenes."""
    open_scenes = segmentation_streams.open_digit_scenes

    def few_scenes(split, *arguments):
        count = 84 if split == "train" else 8
        return open_scenes(split, *arguments)[0].take(count), count

    def tiny(name, **fields):
        assert name == "pvt-tiny"
        return tiny_pvt_config(**fields)

    monkeypatch.setattr(segmentation_streams, "open_digit_scenes", few_scenes)
    monkeypatch.setattr(pvt_hf.variants, "get_config", tiny)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@torch.no_grad()
def assert_same_after_reloading(auto_class, model, folder, keys) -> None:
    reloaded, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert type(reloaded) is type(model) and type(reloaded.config.backbone_config) is pvt_hf.PvtConfig
    assert not any(map(len, info.values())), info
    assert sum(isinstance(module, PvtBackbone) for module in reloaded.modules()) == 1
    assert reloaded.config.id2label == dict(enumerate(SCENE_CLASS_NAMES))
    for key, tensor in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[key], tensor), key
    images = random_images(1, 64, 96)
    expected, actual = model.eval()(images), reloaded.eval()(images)
    for key in keys:
        torch.testing.assert_close(actual[key], expected[key], **FP32_TOLERANCE)


def assert_covers(segments, width: int, height: int) -> None:
    """Every pixel is in one mask; each mask has a class of its own."""
    labels = [segment["label"] for segment in segments]
    assert labels and len(set(labels)) == len(labels) and set(labels) <= set(SCENE_CLASS_NAMES)
    total = sum(np.asarray(segment["mask"]).astype(int) for segment in segments)
    assert total.shape == (height, width) and np.all(total == 255)


def test_upernet(work):
    names = {"__name__": "example"}
    exec(example("UperNetConfig"), names)
    assert type(names["model"]) is UperNetForSemanticSegmentation
    assert_same_after_reloading(
        AutoModelForSemanticSegmentation, names["model"], work / "models" / "upernet", ["logits"]
    )

    command = shlex.split(example("models/upernet", language="bash").replace("\\\n", ""))
    assert command[:2] == ["python", "scripts/train_semantic_segmentation.py"]
    short = "--epochs 1 --batch_size 4 --warmup_epochs 0 --shuffle_window 16 --log_every_steps 3 --num_workers 0 --cpu"
    report = run(parse_arguments(SegmentationSettings, [*command[2:], *short.split()]))
    losses = [entry["loss"] for entry in report["history"] if "loss" in entry]
    # Most pixels are background, which is learnt first
    assert report["steps"] == 21 and losses[0] < 1.2 * np.log(11) and losses[-1] < 0.8 * losses[0], losses
    assert report["skipped"] == 0
    out = work / "outputs" / "upernet"
    trained = AutoModelForSemanticSegmentation.from_pretrained(out)
    assert sum(isinstance(module, PvtBackbone) for module in trained.modules()) == 1
    assert_covers(pipeline("image-segmentation", model=str(out))(Image.new("RGB", (75, 50))), 75, 50)


def test_mask2former(work, capsys):
    code, full = example("Mask2FormerConfig"), "length=8000), 8,"
    assert full in code
    names = {"__name__": "example"}
    exec(code.replace(full, "length=84), 4,"), names)
    losses = dict(line.split() for line in capsys.readouterr().out.splitlines())
    losses = [float(losses[step]) for step in ("0", "10", "20")]
    model = names["model"]
    assert type(model) is Mask2FormerForUniversalSegmentation and losses[-1] < 0.8 * losses[0], losses
    out, keys = work / "outputs" / "mask2former", ["class_queries_logits", "masks_queries_logits"]
    assert_same_after_reloading(AutoModelForUniversalSegmentation, model, out, keys)
    segments = pipeline("image-segmentation", model=str(out))(Image.new("RGB", (75, 50)), subtask="semantic")
    assert_covers(segments, 75, 50)
