"""
Feature pyramid network (FPN, arXiv 1612.03144): the neck of Semantic FPN, RetinaNet and Mask R-CNN.

Computes what the `FPN` of mmdetection and mmsegmentation computes in the official PVT configurations: 1x1 lateral
convolutions, a top-down path with nearest-neighbour upsampling, 3x3 output convolutions, all with bias, without norm
and activation. Heads add coarser levels themselves (two convolutions in RetinaNet, a subsampled map in Mask R-CNN).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init


class FpnConv2d(nn.Conv2d):
    """
    A convolution of the FPN: Xavier-uniform weights, zero bias. It is a class so that the `_init_weights` of a head,
    which Transformers calls for every module, can tell it from the head's own convolutions.
    """

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises weight and bias, unless they were loaded."""
        init.xavier_uniform_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class FeaturePyramidNetwork(nn.Module):
    """
    Brings all levels of a feature pyramid to the same channels and, top-down, adds to each the upsampled coarser one.

    Args:
        in_channels: channels of the backbone's feature maps, finest first.
        out_channels: channels of every output map.
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
            feature_maps: one per level, (batch, in_channels[i], rows_i, columns_i), finest first. Sizes of adjacent
                levels need not differ by a factor of exactly two.

        Returns:
            One map per level, (batch, out_channels, rows_i, columns_i).
        """
        maps = [conv(feature_map) for conv, feature_map in zip(self.lateral_convs, feature_maps)]
        for level in range(len(maps) - 1, 0, -1):
            finer_size = maps[level - 1].shape[-2:]
            maps[level - 1] = maps[level - 1] + nn.functional.interpolate(maps[level], size=finer_size, mode="nearest")
        return [conv(feature_map) for conv, feature_map in zip(self.output_convs, maps)]


__all__ = ["FeaturePyramidNetwork", "FpnConv2d"]
