"""
DeepLabV3+ (arXiv 1802.02611) with separable convolutions: a baseline in Table 7 of the PVT paper.

Follows `segmentron/models/deeplabv3_plus.py` of https://github.com/xieenze/Trans2Seg. Its "resnet50c" has a stem of
64, 64 and 128 channels, as timm's `resnet50s`.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from ..models.modeling_semantic_fpn import resize_bilinear


BACKBONE = "resnet50s"
DILATIONS = {8: (12, 24, 36), 16: (6, 12, 18)}  # of the pyramid pooling, by output stride


def conv_layer(in_channels: int, out_channels: int) -> nn.Sequential:
    """1x1 convolution without bias, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    )


def separable_layer(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """3x3 depthwise convolution, BatchNorm and ReLU, then a `conv_layer`."""
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), *conv_layer(in_channels, out_channels)
    )


class PyramidPooling(nn.Module):
    """A 1x1 convolution, three dilated ones and global pooling side by side, then brought to `channels`."""

    def __init__(self, in_channels: int, channels: int, dilations: tuple[int, ...]):
        super().__init__()
        self.branches = nn.ModuleList(
            (
                conv_layer(in_channels, channels),
                *(separable_layer(in_channels, channels, dilation) for dilation in dilations),
            )
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_layer(in_channels, channels))
        self.projection = nn.Sequential(conv_layer((len(dilations) + 2) * channels, channels), nn.Dropout(0.1))

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        pooled = self.pooled(feature_map).expand(-1, -1, *feature_map.shape[-2:])
        maps = [branch(feature_map) for branch in self.branches]
        return self.projection(torch.cat([pooled, *maps], dim=1))


class DeepLabV3Plus(nn.Module):
    """
    Semantic segmentation: pyramid pooling of the last map, and detail from the one at stride 4.

    Args:
        output_stride: of the last map, 8 or 16; "d8" and "d16" in the paper's table.
        num_labels: number of classes.
        backbone: name of a ResNet of timm.
        channels: of the head.
        fine_channels: that the map at stride 4 is reduced to.

    Raises:
        ValueError: `output_stride` is neither 8 nor 16.
    """

    def __init__(
        self,
        output_stride: int,
        num_labels: int = 150,
        backbone: str = BACKBONE,
        channels: int = 256,
        fine_channels: int = 48,
    ):
        super().__init__()
        if output_stride not in DILATIONS:
            raise ValueError(f"output_stride must be 8 or 16, got {output_stride}.")
        features: Any = timm.create_model(backbone, features_only=True, out_indices=(1, 4), output_stride=output_stride)
        self.backbone = features
        fine, coarse = features.feature_info.channels()
        self.pooling = PyramidPooling(coarse, channels, DILATIONS[output_stride])
        self.fine_projection = conv_layer(fine, fine_channels)
        self.head = nn.Sequential(
            separable_layer(channels + fine_channels, channels),
            separable_layer(channels, channels),
            nn.Conv2d(channels, num_labels, 1),
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) to logits (batch, num_labels, rows, columns) at stride 4."""
        fine, coarse = self.backbone(pixel_values)
        coarse = resize_bilinear(self.pooling(coarse), fine.shape[-2:])
        return self.head(torch.cat([coarse, self.fine_projection(fine)], dim=1))


__all__ = ["DeepLabV3Plus"]
