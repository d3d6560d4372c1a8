"""Runs the longer examples of the pages as printed, on few scenes and with tiny backbones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pvt_hf.weights.variants
from pvt_hf import PvtBackbone

from .common import FP32_TOLERANCE, random_images, tiny_pvt_config


def work_small(folder: Path, patch: pytest.MonkeyPatch, streams) -> None:
    """In `folder`, backbones are tiny and the scenes few of those that the module `streams` opens."""
    open_scenes = streams.open_digit_scenes

    def few_scenes(split, *arguments):
        count = 84 if split == "train" else 8
        examples = open_scenes(split, *arguments)
        return replace(examples, dataset=examples.dataset.take(count), num_samples=count)

    def tiny(name, **fields):
        assert name == "pvt-tiny"
        return tiny_pvt_config(**fields)

    patch.setattr(streams, "open_digit_scenes", few_scenes)
    patch.setattr(pvt_hf.weights.variants, "get_config", tiny)
    patch.chdir(folder)
    torch.manual_seed(0)


@torch.no_grad()
def assert_same_after_reloading(auto_class, model, folder: Path, keys, class_names) -> None:
    reloaded, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert type(reloaded) is type(model) and type(reloaded.config.backbone_config) is pvt_hf.PvtConfig
    assert not any(map(len, info.values())), info
    assert sum(isinstance(module, PvtBackbone) for module in reloaded.modules()) == 1
    assert reloaded.config.id2label == dict(enumerate(class_names))
    for key, tensor in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[key], tensor), key
    images = random_images(1, 64, 96)
    expected, actual = model.eval()(images), reloaded.eval()(images)
    for key in keys:
        torch.testing.assert_close(actual[key], expected[key], **FP32_TOLERANCE)
