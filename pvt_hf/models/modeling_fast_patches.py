"""
A convolution whose stride is its kernel, on a CPU, as one matrix product: PyTorch's convolution copies image and weight
into other memory layouts in each call, which takes longer than the product at a small batch. With gradients, only in
fp32 and fp64, where the feature map is smaller than the weight and the weight's memory is not channels-last.

Measured on 2 cores with AVX-512 in calls that took turns, fp32, PVT-Small and batch 1: 50.0 instead of 52.0 ms at
224x224; with gradients, forward and backward pass 1.06 times as fast, and 1.22 times at 64x64; at batch 8 no difference
above the spread. With weights in channels-last memory, which `model.to(memory_format=torch.channels_last)` gives,
nothing has to be copied without gradients; training then calls the convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .modeling_fast_checks import is_plain, may_be_fast, needs_gradients


def can_multiply_patches(feature_map: torch.Tensor, convolution: nn.Conv2d) -> bool:
    """Whether [`multiply_patches`] computes the same as the convolution, and nobody could notice the difference."""
    return (
        may_be_fast(feature_map)
        and is_plain(convolution, nn.Conv2d)
        and convolution.stride == convolution.kernel_size
        and convolution.padding == (0, 0)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
        and (
            not needs_gradients(feature_map, convolution.weight, convolution.bias)
            or (is_smaller(feature_map, convolution.weight) and feature_map.dtype in (torch.float32, torch.float64))
        )
    )


def multiply_patches(feature_map: torch.Tensor, convolution: nn.Conv2d) -> torch.Tensor:
    """
    Returns the convolution's result as tokens (batch, rows * columns, out channels).

    Args:
        feature_map: (batch, channels, height, width), for which [`can_multiply_patches`] is true. Rows and columns
            beyond a multiple of the kernel are left out.
    """
    height, width = convolution.kernel_size
    rows, columns = feature_map.shape[2] // height, feature_map.shape[3] // width
    patches = feature_map[:, :, : rows * height, : columns * width]
    patches = patches.unflatten(3, (columns, width)).unflatten(2, (rows, height))
    # (batch, channels, rows, height, columns, width)
    if is_smaller(feature_map, convolution.weight):
        patches = patches.permute(0, 2, 4, 1, 3, 5)  # (batch, rows, columns, channels, height, width)
        weight = convolution.weight
    else:
        patches = patches.permute(0, 2, 4, 3, 5, 1)  # (batch, rows, columns, height, width, channels)
        weight = convolution.weight.permute(0, 2, 3, 1)
    return F.linear(patches.flatten(3).flatten(1, 2), weight.flatten(1), convolution.bias)


def is_smaller(feature_map: torch.Tensor, weight: torch.Tensor) -> bool:
    """
    Whether to bring the feature map to the order of the weight, rather than the weight to that of the feature map,
    which is a copy unless the weight's memory is channels-last.
    """
    return weight.is_contiguous() and feature_map.numel() < weight.numel()


__all__ = ["can_multiply_patches", "multiply_patches"]
