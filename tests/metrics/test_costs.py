"""
Costs are counted as the conventions say: operations one by one by hand, PyTorch's against its own counter, a whole PVT
against the formulas of the paper; and the parts of every model add up.

    python -m pytest tests/metrics/test_costs.py
"""

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetConfig

from pvt_hf import PvtBackbone, PvtForImageClassification, PvtModel, RetinaNetForObjectDetection
from pvt_hf.families import load
from pvt_hf.metrics.costs import as_printed, build_on_meta, count_costs, count_parameters

from ..support.common import tiny_pvt_config
from ..support.heads import HEADS, tiny_head_config


class Attention(nn.Module):
    """One head of 4 channels; queries are the 6 * 8 cells of the image, keys and values the first 5."""

    def forward(self, images):
        tokens = nn.functional.pad(images, (0, 0, 0, 0, 0, 1)).flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(tokens, tokens[:, :, :5], tokens[:, :, :5])


# Images of 3x6x8. The paper's operations, and PyTorch's
CONVOLUTION = 24 * 3 * 3 * 3 * 5  # an output of 5x4x6 by 3x3
BY_HAND = {
    "convolution": (nn.Conv2d(3, 5, 3, bias=False), CONVOLUTION, 2 * CONVOLUTION),
    "its bias": (nn.Conv2d(3, 5, 3), CONVOLUTION + 5 * 24, 2 * CONVOLUTION),
    "groups": (nn.Conv2d(3, 3, 3, groups=3, bias=False), 24 * 9 * 3, 2 * 24 * 9 * 3),
    "transposed": (nn.ConvTranspose2d(3, 5, 2, stride=2, bias=False), 48 * 3 * 4 * 5, 2 * 48 * 3 * 4 * 5),
    "linear": (nn.Linear(8, 7, bias=False), 18 * 8 * 7, 2 * 18 * 8 * 7),
    "its bias does not count": (nn.Linear(8, 7), 18 * 8 * 7, 2 * 18 * 8 * 7),
    "attention": (Attention(), 2 * 48 * 5 * 4, 4 * 48 * 5 * 4),
    "ReLU": (nn.ReLU(), 144, 0),
    "ReLU in place": (nn.ReLU(inplace=True), 144, 0),
    "max pooling": (nn.MaxPool2d(2), 144, 0),
    "average pooling": (nn.AvgPool2d(2), 144, 0),
    "global pooling": (nn.AdaptiveAvgPool2d(1), 144, 0),
    "BatchNorm": (nn.BatchNorm2d(3), 0, 0),
    "LayerNorm": (nn.LayerNorm(8), 0, 0),
    "GELU": (nn.GELU(), 0, 0),
    "softmax": (nn.Softmax(dim=-1), 0, 0),
    "resizing": (nn.Upsample(scale_factor=2, mode="bilinear"), 0, 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_operations_by_hand(name):
    module, multiply_adds, flops = BY_HAND[name]
    costs = count_costs(nn.Sequential(module).to("meta").eval().requires_grad_(False), 6, 8)
    assert (costs.multiply_adds, costs.torch_flops) == (multiply_adds, flops)


def test_batch_norm_counts_on_request():
    model = nn.Sequential(nn.BatchNorm2d(3)).to("meta").eval().requires_grad_(False)
    assert count_costs(model, 6, 8, batch_norm=2).multiply_adds == 2 * 144


@pytest.mark.parametrize(
    "build",
    [
        lambda: PvtForImageClassification(tiny_pvt_config()),
        lambda: RetinaNetForObjectDetection(tiny_head_config("retinanet", "resnet")),
        lambda: timm.create_model("resnet18"),
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=(96, 128)),
    ],
)
def test_pytorchs_count_is_that_of_its_counter(build):
    model = build_on_meta(build)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 96, 128, device="meta"))
    assert count_costs(model, 96, 128).torch_flops == counter.get_total_flops() > 0


@pytest.mark.parametrize("size", [(64, 64), (101, 230)])
def test_a_pvt_against_the_formulas_of_the_paper(size):
    """Sections 3.2 and 3.3: patches, reduction, projections, 2 h w (h / R) (w / R) C of attention, and MLP."""
    config = tiny_pvt_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    expected, (rows, columns), channels = 0, size, 3
    fields = ("patch_sizes", "hidden_sizes", "depths", "sequence_reduction_ratios", "mlp_ratios")
    for patch, width, depth, ratio, expansion in zip(*(getattr(config, field) for field in fields)):
        rows, columns = rows // patch, columns // patch
        tokens, keys = rows * columns, (rows // ratio) * (columns // ratio)
        expected += tokens * width * (channels * patch * patch + 1)
        block = 2 * tokens * width * width + 2 * keys * width * width  # query and output, key and value
        block += 2 * tokens * keys * width + 2 * tokens * width * expansion * width
        if ratio > 1:
            block += keys * width * (width * ratio * ratio + 1)
        expected, channels = expected + depth * block, width
    assert count_costs(build_on_meta(lambda: PvtBackbone(config)), *size).multiply_adds == expected


MODELS = {
    "classifier": lambda: PvtForImageClassification(tiny_pvt_config()),
    "model": lambda: PvtModel(tiny_pvt_config()),
    "backbone": lambda: PvtBackbone(tiny_pvt_config(out_features=["stage2", "stage3"])),
    **{
        name: lambda family=family: load(family.models[0].path)(tiny_head_config(family.name))
        for name, family in HEADS.items()
    },
    "retinanet on resnet": lambda: RetinaNetForObjectDetection(tiny_head_config("retinanet", "resnet")),
}


@pytest.mark.parametrize("name", MODELS)
def test_parts_add_up(name):
    model = build_on_meta(MODELS[name])
    costs = count_costs(model, 160, 224)
    assert costs.parameters == model.num_parameters() == sum(part.parameters for part in costs.parts)
    assert costs.torch_flops == sum(part.torch_flops for part in costs.parts)
    # Mask R-CNN's coarsest level is a pooling between two parts
    assert 0 <= costs.multiply_adds - sum(part.multiply_adds for part in costs.parts) <= 5 * 7 * 16
    stages = [part.name for part in costs.parts if part.name.startswith("stage")]
    assert stages == [f"stage{index}" for index in range(1, 4 if name == "backbone" else 5)]
    assert all(part.multiply_adds > 0 for part in costs.parts if part.name.startswith(("stage", "neck", "head")))


def test_the_size_of_the_image_does_not_have_to_be_that_of_the_position_tables():
    model = build_on_meta(MODELS["classifier"])
    small, large = (count_costs(model, side, side) for side in (64, 256))
    assert large.multiply_adds > 16 * small.multiply_adds and large.parameters == small.parameters


def test_a_size_that_the_model_refuses_changes_nothing():
    model = build_on_meta(MODELS["classifier"])
    before = count_costs(model, 64, 64)
    with pytest.raises(ValueError, match="16x64"):
        count_costs(model, 16, 64)
    assert count_costs(model, 64, 64) == before


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, layer)) == 12


def test_rounding():
    assert [as_printed(number) for number in (15_446_006, 13_229_288, 44_850_000_000, 1.94e9, 500)] == [
        "15.5", "13.2", "44.9", "1.9", "0.0",
    ]  # fmt: skip


def test_mask_rcnn_is_counted_with_its_numbers_of_regions():
    def count(**overrides):
        return count_costs(build_on_meta(lambda: mask_rcnn(**overrides)), 128, 128)

    mask_rcnn = lambda **overrides: load(HEADS["mask_rcnn"].models[0].path)(  # noqa: E731
        tiny_head_config("mask_rcnn", backbone_config=ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8],
                         layer_type="basic", out_features=list(HEADS["mask_rcnn"].stages)), **overrides)
    )  # fmt: skip
    part = {part.name: part.multiply_adds for part in count(num_proposals=10, max_detections=20).parts}
    more = {part.name: part.multiply_adds for part in count(num_proposals=30, max_detections=40).parts}
    assert more["box_head"] == 3 * part["box_head"] and more["mask_head"] == 2 * part["mask_head"]
    assert more["rpn"] == part["rpn"] > 0
