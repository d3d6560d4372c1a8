"""
Feature pyramid network (FPN, arXiv 1612.03144): the neck that the dense-prediction heads share.

It computes what mmdetection's and mmsegmentation's `FPN` compute in the configurations of the official PVT code:
1x1 laterals, nearest top-down path, 3x3 outputs, biases, no norm and no activation. Levels beyond those of the backbone
(two convolutions in RetinaNet, a subsampled map in Mask R-CNN) belong to the heads that want them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init


class FpnConv2d(nn.Conv2d):
    """
    A convolution of a feature pyramid: Xavier-uniform weights, zero bias. A class of its own, because Transformers
    initialises modules that hold parameters one by one: a head's `_init_weights` calls `reset_parameters` for this one.
    """

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws new values, except for tensors that were loaded."""
        init.xavier_uniform_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class FeaturePyramidNetwork(nn.Module):
    """
    Gives every level of a feature pyramid the semantics of the coarser ones, and all of them the same channels.

    Args:
        in_channels: channels of the backbone's feature maps, finest first.
        out_channels: channels of every map that comes out.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList(FpnConv2d(channels, out_channels, kernel_size=1) for channels in in_channels)
        self.output_convs = nn.ModuleList(
            FpnConv2d(out_channels, out_channels, kernel_size=3, padding=1) for _ in in_channels
        )

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """
        Args:
            feature_maps: one per level, (batch, in_channels[i], rows_i, columns_i), finest first. Neighbouring levels
                need not differ by a factor of exactly two.

        Returns:
            As many maps, (batch, out_channels, rows_i, columns_i).
        """
        maps = [conv(feature_map) for conv, feature_map in zip(self.lateral_convs, feature_maps)]
        for level in range(len(maps) - 1, 0, -1):
            finer_size = maps[level - 1].shape[-2:]
            maps[level - 1] = maps[level - 1] + nn.functional.interpolate(maps[level], size=finer_size, mode="nearest")
        return [conv(feature_map) for conv, feature_map in zip(self.output_convs, maps)]


__all__ = ["FeaturePyramidNetwork", "FpnConv2d"]
