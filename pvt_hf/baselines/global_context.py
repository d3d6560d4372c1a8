"""
ResNet with global context blocks (GCNet, arXiv 1904.11492): "ResNet50 + GC r4" in Table 10 of the PVT paper, as a
backbone for the heads of this package.

Follows `mmdet/ops/gcb/context_block.py` of https://github.com/xvjiarui/GCNet in its setting "r4": attention pooling,
fusion by addition, and a bottleneck of a quarter of the channels, in every residual block of the last three stages.
Importing this file registers the backbone with AutoConfig and AutoBackbone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoBackbone, AutoConfig, ResNetBackbone, ResNetConfig
from transformers import initialization as init


@strict
class GcResNetConfig(ResNetConfig):
    """
    Configuration of [`GcResNetBackbone`]: fields of `ResNetConfig`, and:

    Args:
        context_ratio: channels of a residual block divided by those of its bottleneck, "r" in the paper.
        context_stages: stages that have the blocks.
    """

    model_type = "gc_resnet"

    context_ratio: int = 4
    context_stages: list[str] | tuple[str, ...] = ("stage2", "stage3", "stage4")

    if TYPE_CHECKING:  # an argument of the constructor that is not a field
        out_features: list[str] | None = None


# Classes of their own, so that `_init_weights`, which Transformers calls for every layer, can tell them from others


class ContextMask(nn.Conv2d):
    """The 1x1 convolution that gives the weight of each position."""


class ContextOutput(nn.Linear):
    """The last layer of a block."""


class GlobalContextBlock(nn.Module):
    """
    Pools the whole map with learned weights into one context vector, transforms it, and adds it to every position.
    Starts as the identity.

    Args:
        channels: of the map.
        ratio: `channels` divided by those of the bottleneck.
    """

    def __init__(self, channels: int, ratio: int):
        super().__init__()
        self.mask = ContextMask(channels, 1, kernel_size=1)
        self.reduce = nn.Linear(channels, channels // ratio)
        self.layer_norm = nn.LayerNorm(channels // ratio)
        self.expand = ContextOutput(channels // ratio, channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(batch, channels, rows, columns) to the same shape."""
        weights = self.mask(feature_map).flatten(2).softmax(dim=2)  # (batch, 1, rows * columns)
        context = torch.matmul(weights, feature_map.flatten(2).transpose(1, 2)).squeeze(1)  # (batch, channels)
        context = self.expand(nn.functional.relu(self.layer_norm(self.reduce(context))))
        return feature_map + context[:, :, None, None]


class GcResNetBackbone(ResNetBackbone):
    """Transformers' ResNet with a global context block at the end of every residual branch of some stages."""

    config: GcResNetConfig
    config_class = GcResNetConfig

    def __init__(self, config: GcResNetConfig):
        super().__init__(config)
        stages: Any = self.encoder.stages
        for name in config.context_stages:
            for layer in stages[int(name.removeprefix("stage")) - 1].layers:
                channels = layer.layer[-1].convolution.out_channels
                layer.layer.append(GlobalContextBlock(channels, config.context_ratio))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As GCNet: Kaiming-normal (fan-in) for the pooling weights, zero for the last layer of a block."""
        super()._init_weights(module)
        if isinstance(module, ContextMask):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            assert module.bias is not None
            init.zeros_(module.bias)
        elif isinstance(module, ContextOutput):
            init.zeros_(module.weight)
            init.zeros_(module.bias)


def register() -> None:
    """Makes the backbone known to AutoConfig and AutoBackbone."""
    AutoConfig.register(GcResNetConfig.model_type, GcResNetConfig, exist_ok=True)
    AutoBackbone.register(GcResNetConfig, GcResNetBackbone, exist_ok=True)


register()

__all__ = ["GcResNetBackbone", "GcResNetConfig", "GlobalContextBlock"]
