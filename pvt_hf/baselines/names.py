"""The models of other papers in the PVT paper's tables, by the names in its tables: what builds each, and its sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from .t2t_vit import T2TViT


# The ResNets of timm. The paper's segmentation has deep stems: three 3x3 convolutions (timm has no resnet18c; a
# resnet18d also has an average pooling before the 1x1 convolution of a shortcut, without parameters).
RESNETS = {
    "ResNet18": "resnet18",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "ResNeXt50-32x4d": "resnext50_32x4d",
    "ResNeXt101-32x4d": "resnext101_32x4d",
    "ResNeXt101-64x4d": "resnext101_64x4d",
}
DEEP_STEMS = {"ResNet18": "resnet18d", "ResNet50": "resnet50c", "ResNet101": "resnet101c"}
# Tables 2 and 8, 224x224, patches of 16x16. DeiT without its distillation token is a ViT. The paper's ViT-Small is
# `vit_small_patch16_224` of timm 0.3.2: not what is called ViT-Small today, which is DeiT-Small.
VITS: dict[str, dict[str, Any]] = {
    "DeiT-Tiny/16": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "DeiT-Small/16": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "DeiT-Base/16": {},
    "ViT-Base/16": {},
    "ViT-Small/16": {
        "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2304, "qkv_bias": False,
    },
    "ViT-Small/32": {
        "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2304, "qkv_bias": False,
        "patch_size": 32,
    },
}  # fmt: skip
# Channels, blocks and heads
T2T_VITS = {
    "T2T-ViT_t-14": (384, 14, 6),
    "T2T-ViT_t-19": (448, 19, 7),
    "T2T-ViT_t-24": (512, 24, 8),
}
TNTS = {"TNT-S": "tnt_s_legacy_patch16_224", "TNT-B": "tnt_b_patch16_224"}


def build_classifier(name: str, image_size: int = 224) -> nn.Module:
    """
    A classifier of ImageNet-1K with random weights.

    Args:
        name: in the paper's tables.
        image_size: height and width in pixels, to which a ViT is tied.

    Raises:
        ValueError: there is no such model.
    """
    builders: dict[str, Callable[[], nn.Module]] = {
        **{key: lambda: timm.create_model({**RESNETS, **TNTS}[name]) for key in (*RESNETS, *TNTS)},
        **{key: lambda: T2TViT(*T2T_VITS[name], image_size=image_size) for key in T2T_VITS},
        **{key: lambda: _build_vit(name, image_size) for key in VITS},
    }
    if name not in builders:
        raise ValueError(f"There is no baseline {name!r}: choose one of {', '.join(builders)}.")
    return builders[name]()


def _build_vit(name: str, image_size: int) -> nn.Module:
    config_class: Any = ViTConfig  # `num_labels` is no field
    return ViTForImageClassification(config_class(**VITS[name], image_size=image_size, num_labels=1000))


__all__ = ["DEEP_STEMS", "RESNETS", "T2T_VITS", "TNTS", "VITS", "build_classifier"]
