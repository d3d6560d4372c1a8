"""
The README's examples of UperNet and Mask2Former with a PVT backbone run as they are printed, but for a tiny backbone
and few steps: they learn, and what they save is opened by Auto classes and the pipeline.

    python -m pytest tests/test_segmentation_frameworks.py
"""

import re
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
from pvt_hf.data.digits import SCENE_CLASS_NAMES

from .common import FP32_TOLERANCE, random_images, tiny_pvt_config


README = Path(__file__).parents[1] / "README.md"


def example(word: str, section: str = "Semantic segmentation", language: str = "python") -> str:
    """The block of code in a section of the README that has this word."""
    text = README.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    (block,) = [code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if word in code]
    return block


@pytest.fixture
def trained(request, tmp_path, monkeypatch, capsys):
    """The model of an example, the losses that it printed, and the folder where it ran."""
    word, steps = request.param

    def tiny(name, **fields):
        assert name == "pvt-tiny"
        return tiny_pvt_config(**fields)

    monkeypatch.setattr(pvt_hf.variants, "get_config", tiny)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    full, short = "length=8000), 8,", f"length={4 * steps}), 4,"
    code = example(word)
    assert full in code
    names = {"__name__": "example"}
    exec(code.replace(full, short), names)
    losses = dict(line.split() for line in capsys.readouterr().out.splitlines())
    losses = [float(losses[str(step)]) for step in range(0, steps, 10)]
    return names["model"], losses, tmp_path


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


@pytest.mark.parametrize("trained", [("UperNetConfig", 21)], indirect=True)
def test_upernet(trained):
    model, losses, folder = trained
    assert type(model) is UperNetForSemanticSegmentation
    # Most pixels are background, which is learnt first
    assert abs(losses[0] - np.log(11)) < 0.5 and losses[-1] < 0.8 * losses[0], losses
    out = folder / "outputs" / "upernet"
    assert_same_after_reloading(AutoModelForSemanticSegmentation, model, out, ["logits"])
    assert_covers(pipeline("image-segmentation", model=str(out))(Image.new("RGB", (75, 50))), 75, 50)


@pytest.mark.parametrize("trained", [("Mask2FormerConfig", 21)], indirect=True)
def test_mask2former(trained):
    model, losses, folder = trained
    assert type(model) is Mask2FormerForUniversalSegmentation
    assert losses[-1] < 0.8 * losses[0], losses
    out, keys = folder / "outputs" / "mask2former", ["class_queries_logits", "masks_queries_logits"]
    assert_same_after_reloading(AutoModelForUniversalSegmentation, model, out, keys)
    segments = pipeline("image-segmentation", model=str(out))(Image.new("RGB", (75, 50)), subtask="semantic")
    assert_covers(segments, 75, 50)
