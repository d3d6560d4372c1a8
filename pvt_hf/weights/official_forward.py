"""
The forward pass of the official PVT, computed directly from the tensors of an official checkpoint.

Conversions are verified against it, so it shares no code with the models of this package: no modules, no key mapping,
fused key/value matrices. It follows `classification/pvt.py` and `detection/pvt.py` of https://github.com/whai362/PVT,
branch v2, in eval mode, with one deviation: each stage resizes its position table if the grid is not its own. The
official code compares every stage's grid with that of stage 1 instead, which crashes at 448x448 and scrambles positions
at 112x448. Where it does neither, both agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F


_BLOCK_EPS = 1e-6  # norm1, norm2 and the final norm
_REDUCTION_EPS = 1e-5  # the norms after patch projection and sequence reduction


def official_logits(
    state_dict: Mapping[str, torch.Tensor],
    pixel_values: torch.Tensor,
    num_attention_heads: Sequence[int],
    image_size: tuple[int, int],
) -> torch.Tensor:
    """
    Runs the classifier.

    Args:
        state_dict: tensors by official name, all of one float dtype, with cls_token, norm and head.
        pixel_values: (batch, channels, height, width) in that dtype, at least 32x32 pixels.
        num_attention_heads: of each stage; the tensors do not show it.
        image_size: (height, width), in pixels, that the position tables were made for.

    Returns:
        Logits (batch, classes).
    """
    return _forward(state_dict, pixel_values, num_attention_heads, image_size, classify=True)


def official_feature_maps(
    state_dict: Mapping[str, torch.Tensor],
    pixel_values: torch.Tensor,
    num_attention_heads: Sequence[int],
    image_size: tuple[int, int],
) -> list[torch.Tensor]:
    """
    Runs the dense-prediction backbone, without cls token and final norm. Arguments as for [`official_logits`], but
    cls_token, norm and head are not used and may be missing.

    Returns:
        Four feature maps (batch, C_i, rows_i, columns_i), at strides 4, 8, 16 and 32 in the published models.
    """
    return _forward(state_dict, pixel_values, num_attention_heads, image_size, classify=False)


def _forward(
    state_dict: Mapping[str, torch.Tensor],
    pixel_values: torch.Tensor,
    num_attention_heads: Sequence[int],
    image_size: tuple[int, int],
    classify: bool,
) -> Any:
    feature_maps, x, table_grid = [], pixel_values, tuple(image_size)
    for i, heads in enumerate(num_attention_heads, start=1):
        weight = state_dict[f"patch_embed{i}.proj.weight"]
        patch = weight.shape[2:]
        table_grid = (table_grid[0] // patch[0], table_grid[1] // patch[1])
        x = F.conv2d(x, weight, state_dict[f"patch_embed{i}.proj.bias"], stride=patch)
        grid = tuple(x.shape[2:])
        x = _layer_norm(state_dict, f"patch_embed{i}.norm", x.flatten(2).transpose(1, 2), _REDUCTION_EPS)  # (B, HW, C)

        table, prefix = state_dict[f"pos_embed{i}"], x.new_zeros(1, 0, x.shape[2])
        if i == len(num_attention_heads):  # the first row of this table belongs to the cls token
            prefix, table = table[:, :1], table[:, 1:]
        table = _resize(table, table_grid, grid)
        if i == len(num_attention_heads) and classify:
            x = torch.cat([state_dict["cls_token"].expand(x.shape[0], -1, -1), x], dim=1)
            table = torch.cat([prefix, table], dim=1)
        x = x + table

        block = 0
        while f"block{i}.{block}.norm1.weight" in state_dict:
            name = f"block{i}.{block}"
            x = x + _attention(state_dict, f"{name}.attn", _layer_norm(state_dict, f"{name}.norm1", x), grid, heads)
            x = x + _mlp(state_dict, f"{name}.mlp", _layer_norm(state_dict, f"{name}.norm2", x))
            block += 1
        if i == len(num_attention_heads) and classify:
            return _linear(state_dict, "head", _layer_norm(state_dict, "norm", x)[:, 0])
        x = x.transpose(1, 2).unflatten(2, grid)  # (B, C, H, W)
        feature_maps.append(x)
    return feature_maps


def _attention(
    state_dict: Mapping[str, torch.Tensor], name: str, x: torch.Tensor, grid: tuple[int, ...], heads: int
) -> torch.Tensor:
    """Spatial-reduction attention of normed tokens (batch, [1 +] rows * columns, channels)."""
    batch, tokens, channels = x.shape
    q = _linear(state_dict, f"{name}.q", x).view(batch, tokens, heads, channels // heads).transpose(1, 2)
    if f"{name}.sr.weight" in state_dict:
        weight = state_dict[f"{name}.sr.weight"]
        x = x.transpose(1, 2).unflatten(2, grid)
        x = F.conv2d(x, weight, state_dict[f"{name}.sr.bias"], stride=weight.shape[2:]).flatten(2).transpose(1, 2)
        x = _layer_norm(state_dict, f"{name}.norm", x, _REDUCTION_EPS)
    kv = _linear(state_dict, f"{name}.kv", x).view(batch, -1, 2, heads, channels // heads)
    k, v = kv.permute(2, 0, 3, 1, 4)  # each (batch, heads, keys, channels // heads)
    weights = (q @ k.transpose(2, 3) * (channels // heads) ** -0.5).softmax(dim=-1)
    return _linear(state_dict, f"{name}.proj", (weights @ v).transpose(1, 2).reshape(batch, tokens, channels))


def _mlp(state_dict: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return _linear(state_dict, f"{name}.fc2", F.gelu(_linear(state_dict, f"{name}.fc1", x)))


def _resize(table: torch.Tensor, table_grid: tuple[int, ...], grid: tuple[int, ...]) -> torch.Tensor:
    resized = table.unflatten(1, table_grid).permute(0, 3, 1, 2).float()  # (1, C, rows, columns), fp32 as officially
    resized = F.interpolate(resized, size=grid, mode="bilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(table.dtype)


def _linear(state_dict: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state_dict[f"{name}.weight"], state_dict.get(f"{name}.bias"))  # q and kv may have no bias


def _layer_norm(
    state_dict: Mapping[str, torch.Tensor], name: str, x: torch.Tensor, eps: float = _BLOCK_EPS
) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state_dict[f"{name}.weight"], state_dict[f"{name}.bias"], eps)
