"""
Semantic FPN keeps the contract of heads, and computes what its paper describes.

The head is compared with one written here from its description, by functional operations and by indices. Parameters
and GFLOPs of the paper are tested in tests/hub/test_published_costs.py.

    python -m pytest tests/models/test_modeling_semantic_fpn.py
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import TimmBackboneConfig

from pvt_hf import SemanticFpnConfig, SemanticFpnForSemanticSegmentation
from pvt_hf.models.modeling_fpn import FeaturePyramidNetwork
from pvt_hf.models.modeling_semantic_fpn import semantic_segmentation_loss

from ..support.common import random_images
from ..support.head_contract import SegmenterContract
from ..support.heads import random_label_maps, tiny_head, tiny_head_config
from ..support.references import resize_bilinear


STAGES = ["stage1", "stage2", "stage3", "stage4"]


class TestSemanticFpn(SegmenterContract):
    family = "semantic_fpn"
    # Dropout has a test of its own: the contract compares gradients of training steps.
    overrides = {"classifier_dropout_prob": 0.0}
    refused_stages = [["stage4"], STAGES[1:]]


def test_a_timm_backbone():
    """timm's out_indices 1 to 4 have strides 4 to 32."""
    model = tiny_head("semantic_fpn", backbone_config=TimmBackboneConfig(backbone="resnet18", out_indices=[1, 2, 3, 4]))
    images, labels = random_images(2, 64, 96), random_label_maps(2, 64, 96)
    outputs = model.train()(images, labels=labels)
    outputs.loss.backward()
    assert outputs.logits.shape == (2, 6, 16, 24)
    head = [*model.neck.parameters(), *model.head.parameters()]
    assert all(parameter.grad is not None for parameter in head)


# The head, from its description


def nearest(feature_map: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Cell i of n comes from cell i * m // n of m."""
    row_index = [row * feature_map.shape[2] // rows for row in range(rows)]
    column_index = [column * feature_map.shape[3] // columns for column in range(columns)]
    return feature_map[:, :, row_index][:, :, :, column_index]


def reference_logits(state: dict[str, torch.Tensor], features: list[torch.Tensor]) -> torch.Tensor:
    """PAPER_FACTS section 5.1 with dropout off, in the dtype of its arguments."""
    f1, f2, f3, f4 = [
        F.conv2d(feature, state[f"neck.lateral_convs.{i}.weight"], state[f"neck.lateral_convs.{i}.bias"])
        for i, feature in enumerate(features)
    ]
    f3 = f3 + nearest(f4, *f3.shape[2:])
    f2 = f2 + nearest(f3, *f2.shape[2:])
    f1 = f1 + nearest(f2, *f1.shape[2:])
    total = 0
    for level, feature in enumerate((f1, f2, f3, f4)):
        prefix = f"neck.output_convs.{level}."
        feature = F.conv2d(feature, state[prefix + "weight"], state[prefix + "bias"], padding=1)
        for block in range((1, 1, 2, 3)[level]):
            prefix = f"head.levels.{level}.{block}."
            feature = F.conv2d(feature, state[prefix + "convolution.weight"], padding=1)
            mean, variance, gain, bias = (
                state[f"{prefix}batch_norm.{name}"][None, :, None, None]
                for name in ("running_mean", "running_var", "weight", "bias")
            )
            feature = ((feature - mean) / (variance + 1e-5).sqrt() * gain + bias).clamp(min=0)
            if level > 0:
                feature = resize_bilinear(feature, 2 * feature.shape[2], 2 * feature.shape[3])
        total = total + resize_bilinear(feature, *f1.shape[2:])
    return F.conv2d(total, state["head.classifier.weight"], state["head.classifier.bias"])


# (101, 77), (75, 110): the grids are rounded down, so that levels do not differ by factors of two
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (101, 77), (75, 110), (32, 32)])
def test_logits_are_those_of_the_description(height, width):
    model = tiny_head("semantic_fpn", num_labels=7).double()
    assert all(
        "num_batches" in name or name.startswith("backbone") or t.abs().max() > 0
        for name, t in model.state_dict().items()
    )
    images = random_images(2, height, width).double()
    with torch.no_grad():
        expected = reference_logits(model.state_dict(), list(model.backbone(images).feature_maps))
        actual = model(images).logits
    assert actual.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)  # float64, another order of summation


def test_channels_and_dropout_of_the_paper():
    model = SemanticFpnForSemanticSegmentation(SemanticFpnConfig())
    assert model.config.num_labels == 150
    assert [tuple(conv.weight.shape) for conv in model.neck.lateral_convs] == [
        (256, 64, 1, 1), (256, 128, 1, 1), (256, 320, 1, 1), (256, 512, 1, 1),
    ]  # fmt: skip
    assert all(tuple(conv.weight.shape) == (256, 256, 3, 3) for conv in model.neck.output_convs)
    shapes = [[tuple(layer.convolution.weight.shape[:2]) for layer in level] for level in model.head.levels]
    first, next_ = (128, 256), (128, 128)
    assert shapes == [[first], [first], [first, next_], [first, next_, next_]]
    assert model.head.classifier.weight.shape == (150, 128, 1, 1)
    assert type(model.head.dropout) is nn.Dropout2d and model.head.dropout.p == 0.1


def test_dropout_removes_whole_channels_of_the_classifiers_input():
    model = tiny_head("semantic_fpn", classifier_dropout_prob=0.5, head_channels=64)
    inputs = []
    model.head.classifier.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    torch.manual_seed(0)
    model.train()(random_images(2, 64, 64))
    is_zero = (inputs[0] == 0).flatten(2)
    dropped = is_zero.all(-1).float().mean()
    # 128 draws: 4 standard deviations are 4 * sqrt(.25 / 128) = 0.18
    assert abs(dropped - 0.5) < 0.18
    model.eval()(random_images(2, 64, 64))
    assert not (inputs[1] == 0).flatten(2).all(-1).any()


def test_initialisation():
    torch.manual_seed(0)
    model = SemanticFpnForSemanticSegmentation(SemanticFpnConfig())
    for conv in (*model.neck.lateral_convs, *model.neck.output_convs):
        outputs, inputs, rows, columns = conv.weight.shape
        bound = math.sqrt(6 / ((inputs + outputs) * rows * columns))  # Glorot and Bengio 2010, equation 16
        assert conv.weight.abs().max() <= bound and conv.weight.abs().max() > 0.99 * bound
        assert abs(conv.weight.std() / (bound / math.sqrt(3)) - 1) < 0.02  # of a uniform distribution
        assert torch.all(conv.bias == 0)
    for level in model.head.levels:
        for layer in level:
            # He et al. 2015, backward form: variance 2 over fan-out; normal: some of 100,000 exceed 4 deviations
            std = math.sqrt(2 / (128 * 9))
            assert abs(layer.convolution.weight.std() / std - 1) < 0.02
            assert layer.convolution.weight.abs().max() > 4 * std
            assert layer.convolution.bias is None
            assert torch.all(layer.batch_norm.weight == 1) and torch.all(layer.batch_norm.bias == 0)
    # 19,200 numbers: 4 standard deviations of the estimate are 4 / sqrt(2 * 19,200) = 2 %
    assert abs(model.head.classifier.weight.std() / 0.01 - 1) < 0.02
    assert torch.all(model.head.classifier.bias == 0)


def test_the_neck_serves_three_levels_and_any_channels():
    """As RetinaNet uses it: levels 2 to 4, with further levels made from its inputs and outputs."""
    torch.manual_seed(0)
    neck = FeaturePyramidNetwork([32, 80, 128], out_channels=24)
    features = [torch.randn(2, 32, 13, 9), torch.randn(2, 80, 6, 4), torch.randn(2, 128, 3, 2)]
    before = [feature.clone() for feature in features]
    outputs = neck(features)
    assert [tuple(output.shape) for output in outputs] == [(2, 24, 13, 9), (2, 24, 6, 4), (2, 24, 3, 2)]
    assert all(torch.equal(one, other) for one, other in zip(features, before))
    # the coarsest level sees itself alone, the finest one sees all
    expected = neck.output_convs[2](neck.lateral_convs[2](features[2]))
    torch.testing.assert_close(outputs[2], expected)
    assert all(
        torch.autograd.grad(outputs[0].sum(), neck.lateral_convs[i].weight, retain_graph=True)[0].any()
        for i in range(3)
    )


def test_synchronised_batch_norm_can_be_converted():
    """As for training on several GPUs, which alone could test the statistics."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(tiny_head("semantic_fpn"))
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 1 + 1 + 2 + 3


# Loss


def test_ignored_pixels_have_no_gradient_and_their_number_is_configured():
    logits = torch.randn(1, 4, 8, 8, requires_grad=True)
    labels = torch.randint(0, 4, (1, 8, 8))
    labels[:, :3] = -100
    semantic_segmentation_loss(logits, labels, ignore_index=-100).backward()
    assert torch.all(logits.grad[:, :, :3] == 0) and torch.all(logits.grad[:, :, 3:].abs().sum(1) > 0)
    model = tiny_head("semantic_fpn", semantic_loss_ignore_index=9)
    labels = random_label_maps(1, 64, 64)
    assert torch.isfinite(model(random_images(1, 64, 64), labels=labels.where(labels < 6, 9)).loss)
    with pytest.raises(ValueError, match="255"):
        model(random_images(1, 64, 64), labels=labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_a_half_precision_model_is_computed_in_fp32(dtype):
    logits = 30 * torch.randn(2, 6, 64, 64)
    labels = random_label_maps(2, 256, 256)
    loss = semantic_segmentation_loss(logits.to(dtype), labels, 255)
    assert loss.dtype == torch.float32
    # a sum of 118,000 losses of about 40 would be infinite in fp16; the logits are the same numbers
    torch.testing.assert_close(loss, semantic_segmentation_loss(logits.to(dtype).float(), labels, 255))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.full((2, 64, 64), 6), ["6", "num_labels", "0 to 5", "255"]),
        (torch.full((2, 64, 64), -1), ["-1"]),
        (torch.full((2, 64, 64), 254, dtype=torch.uint8), ["254"]),
        (torch.arange(2 * 64 * 64).view(2, 64, 64), ["6, 7, 8, 9, 10 ..."]),
        (torch.zeros(1, 64, 64, dtype=torch.long), ["batch of 2", "(1, 64, 64)"]),
        (torch.zeros(2, 1, 64, 64, dtype=torch.long), ["(2, 1, 64, 64)"]),
        (torch.zeros(2, dtype=torch.long), ["(2,)"]),
        (torch.zeros(2, 64, 64), ["float32"]),
    ],
)
def test_labels_that_cannot_be(labels, words):
    model = tiny_head("semantic_fpn")
    with pytest.raises(ValueError) as error:
        model(random_images(2, 64, 64), labels=labels)
    for word in words:
        assert word in str(error.value)


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    model = SemanticFpnForSemanticSegmentation(tiny_head_config("semantic_fpn", num_labels=2)).train()
    images = random_images(2, 64, 64)
    labels = (F.avg_pool2d(images.sum(1, keepdim=True), 17, stride=1, padding=8)[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(model(images, labels=labels).loss)
        losses[-1].backward()
        optimizer.step()
    assert abs(losses[0] - math.log(2)) < 0.1 and losses[-1] < 0.6 * losses[0]


# Configuration


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"num_labels": 1}, ["num_labels", "1"]),
        ({"num_labels": 300}, ["semantic_loss_ignore_index", "255", "300"]),
        ({"fpn_channels": 0}, ["fpn_channels", "0"]),
        ({"head_channels": -1}, ["head_channels", "-1"]),
        ({"classifier_dropout_prob": 1.0}, ["classifier_dropout_prob", "1.0"]),
    ],
)
def test_configurations_that_cannot_work(overrides, words):
    with pytest.raises(ValueError) as error:
        SemanticFpnConfig(**overrides)
    for word in words:
        assert word in str(error.value)


def test_an_attention_implementation_reaches_the_backbone():
    for name in ("eager", "sdpa"):
        model = tiny_head("semantic_fpn", attn_implementation=name)
        assert model.backbone.config._attn_implementation == name
        model.set_attn_implementation("eager")
        assert model.backbone.config._attn_implementation == "eager"


def test_trainer_averages_the_loss_itself():
    """Trainer's count of items would include ignored pixels."""
    assert SemanticFpnForSemanticSegmentation.accepts_loss_kwargs is False
