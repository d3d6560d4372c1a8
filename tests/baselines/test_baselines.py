"""
The models that the paper compares with compute what their sources say: global context blocks against timm's, the ViT
pyramid against the layers of Transformers' ViT, the token transformer of T2T-ViT by hand. All can be trained. Their
parameters and GFLOPs are compared with the paper in tests/hub/test_published_costs.py.

    python -m pytest tests/baselines/test_baselines.py
"""

import pytest
import torch
from timm.layers import GlobalContext
from torch import nn
from transformers import AutoBackbone, ViTConfig, ViTModel

from pvt_hf import RetinaNetConfig, RetinaNetForObjectDetection
from pvt_hf.baselines.deeplab import DeepLabV3Plus
from pvt_hf.baselines.global_context import GcResNetBackbone, GcResNetConfig, GlobalContextBlock
from pvt_hf.baselines.names import build_classifier
from pvt_hf.baselines.t2t_vit import T2TViT, TokenTransformer, sinusoids
from pvt_hf.baselines.vit_pyramid import VitPyramidBackbone, VitPyramidConfig
from pvt_hf.metrics.costs import build_on_meta, count_parameters

from ..support.common import FP32_TOLERANCE, random_images, randomize


STAGES = ["stage1", "stage2", "stage3", "stage4"]


def every_parameter_learns(model: nn.Module, loss: torch.Tensor) -> bool:
    loss.backward()
    return all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


# ResNet with global context blocks


def test_a_global_context_block_computes_what_timms_does():
    ours = randomize(GlobalContextBlock(16, ratio=4))
    theirs = GlobalContext(16, use_attn=True, fuse_add=True, fuse_scale=False, rd_ratio=0.25)
    pairs = ((theirs.conv_attn, ours.mask), (theirs.mlp_add.fc1, ours.reduce), (theirs.mlp_add.norm, ours.layer_norm),
             (theirs.mlp_add.fc2, ours.expand))  # fmt: skip
    with torch.no_grad():
        for their, our in pairs:
            their.weight.copy_(our.weight.view_as(their.weight))
            their.bias.copy_(our.bias)
    theirs.mlp_add.norm.eps = ours.layer_norm.eps
    images = random_images(2, 5, 7, channels=16)
    torch.testing.assert_close(ours(images), theirs(images), **FP32_TOLERANCE)


def test_blocks_are_in_the_last_three_stages_and_start_as_the_identity():
    config = GcResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 2, 1, 1], out_features=STAGES)
    backbone = GcResNetBackbone(config).eval()
    blocks = {name: module for name, module in backbone.named_modules() if isinstance(module, GlobalContextBlock)}
    assert [name.split(".")[2] for name in blocks] == ["1", "1", "2", "3"]
    images, maps = random_images(1, 64, 96), {}
    for name, block in blocks.items():
        block.register_forward_hook(
            lambda module, args, output, name=name: maps.update({name: (args[0], output.clone())})
        )
    backbone(images)
    assert len(maps) == 4 and all(torch.equal(before, after) for before, after in maps.values())
    # Kaiming-normal by the 24 to 40 inputs of the pooling weights, not by their one output: 1.4
    assert all(0.1 < block.mask.weight.std() < 0.5 for block in blocks.values())
    randomize(backbone)
    assert every_parameter_learns(backbone, sum(one.square().sum() for one in backbone(images).feature_maps))


def test_the_blocks_of_resnet50_add_ten_million_parameters():
    """PAPER_FACTS section 6: 10.00 M in 13 blocks."""
    counts = [
        count_parameters(build_on_meta(lambda: GcResNetBackbone(GcResNetConfig(context_stages=stages))))  # noqa: B023
        for stages in ([], ["stage2", "stage3", "stage4"])
    ]
    assert round((counts[1] - counts[0]) / 1e6, 2) == 10.00


@pytest.mark.parametrize(
    "config",
    [
        GcResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=STAGES[1:],
        ),
        VitPyramidConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64,
            patch_size=16, out_features=STAGES[1:],
        ),
    ],
    ids=["gc_resnet", "vit_pyramid"],
)  # fmt: skip
def test_backbones_serve_heads_and_survive_saving(config, tmp_path):
    model = RetinaNetForObjectDetection(
        RetinaNetConfig(backbone_config=config, num_labels=3, fpn_channels=8, num_head_convs=1)
    ).eval()
    randomize(model).save_pretrained(tmp_path)
    opened = RetinaNetForObjectDetection.from_pretrained(tmp_path)
    assert type(opened.backbone) is type(model.backbone) and opened.config.backbone_config.out_features == STAGES[1:]
    images = random_images(1, 96, 150)
    torch.testing.assert_close(opened(images).pred_boxes, model(images).pred_boxes, **FP32_TOLERANCE)
    assert isinstance(AutoBackbone.from_config(config), type(model.backbone))


# ViT pyramid


def test_a_vit_pyramid_interpolates_every_second_of_eight_layers():
    sizes = {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2, "intermediate_size": 32}
    config = VitPyramidConfig(**sizes, image_size=64, patch_size=16, out_features=STAGES)
    backbone = randomize(VitPyramidBackbone(config).eval())
    vit = ViTModel(
        ViTConfig(**sizes, image_size=64, patch_size=16, qkv_bias=False, layer_norm_eps=1e-6), add_pooling_layer=False
    ).eval()
    missing = vit.load_state_dict(backbone.state_dict(), strict=False)
    assert missing.missing_keys == ["layernorm.weight", "layernorm.bias"] and not missing.unexpected_keys
    images = random_images(2, 64, 64)
    layers = vit(images, output_hidden_states=True).hidden_states  # the first is the embedding
    maps = backbone(images).feature_maps
    assert [tuple(one.shape) for one in maps] == [(2, 16, side, side) for side in (16, 8, 4, 2)]
    for layer, one in zip((2, 4, 6, 8), maps):
        tokens = layers[layer][:, 1:].transpose(1, 2).reshape(2, 16, 4, 4)
        expected = nn.functional.interpolate(tokens, one.shape[-2:], mode="bilinear")
        torch.testing.assert_close(one, expected, **FP32_TOLERANCE)
    assert every_parameter_learns(backbone, sum(one.square().sum() for one in backbone(images).feature_maps))


def test_a_vit_pyramid_takes_any_size():
    config = VitPyramidConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16
    )
    assert config.out_features == ["stage4"]
    (coarsest,) = VitPyramidBackbone(config).eval()(random_images(1, 101, 77)).feature_maps
    assert coarsest.shape == (1, 16, 3, 2)
    with pytest.raises(ValueError, match="num_hidden_layers.*6"):
        VitPyramidConfig(num_hidden_layers=6)


# T2T-ViT


def test_a_token_transformer_by_hand():
    layer, tokens = randomize(TokenTransformer(6, 4)), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    query, key, value = layer.query_key_value(layer.norm_1(tokens)).split(4, dim=2)
    weights = (query @ key.transpose(1, 2) / 6**0.5).softmax(dim=2)
    expected = value + layer.projection(weights @ value)
    first, _, second = layer.mlp
    expected = expected + second(nn.functional.gelu(first(layer.norm_2(expected))))
    torch.testing.assert_close(layer(tokens), expected, **FP32_TOLERANCE)


def test_t2t_vit_learns():
    model = T2TViT(16, depth=2, num_heads=2, image_size=64, num_classes=5, token_channels=8)
    logits = model(random_images(2, 64, 64))
    assert logits.shape == (2, 5) and every_parameter_learns(model, logits.square().sum())
    # The code of position 3 at the frequencies 1 and 1/100
    torch.testing.assert_close(sinusoids(4, 4)[0, 3], torch.tensor([3.0, 3.0, 0.03, 0.03]).sin().where(
        torch.tensor([True, False, True, False]), torch.tensor([3.0, 3.0, 0.03, 0.03]).cos()))  # fmt: skip


# DeepLabV3+


@pytest.mark.parametrize("output_stride", [8, 16])
def test_deeplab_learns(output_stride):
    model = DeepLabV3Plus(output_stride, num_labels=5, backbone="resnet18", channels=8, fine_channels=4)
    logits = model(random_images(2, 64, 96))
    assert logits.shape == (2, 5, 16, 24) and every_parameter_learns(model, logits.square().sum())
    coarse = model.backbone(random_images(1, 64, 96))[-1]
    assert coarse.shape[-2:] == (64 // output_stride, 96 // output_stride)


def test_deeplab_refuses_other_strides():
    with pytest.raises(ValueError, match="32"):
        DeepLabV3Plus(32)


# Names


def test_the_papers_vit_small_is_not_todays():
    """PAPER_FACTS section 3.2."""
    assert count_parameters(build_on_meta(lambda: build_classifier("ViT-Small/16"))) == 48_754_408


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="ResNet51.*ResNet50"):
        build_classifier("ResNet51")
