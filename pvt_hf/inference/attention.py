"""Attention maps of every stage of a PVT, by itself or as the backbone of another model: where each patch looks."""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor


# In pixels. Smaller images leave the last stage with too few keys to see a pattern; the maps of larger ones fill the
# memory: a stage has pixels^2 / (stride^4 * reduction^2) entries per head and block.
LEAST_AREA, LARGEST_AREA = 128**2, 448**2


@dataclass(frozen=True)
class StageAttention:
    """
    The attention of a stage's last block, averaged over the heads.

    Attributes:
        grid: (rows, columns) of the queries: the stage's patches.
        key_grid: (rows, columns) of the keys: the reduced grid.
        weights: (queries, keys) float32. A row sums to 1, minus the attention to a cls token.
    """

    grid: tuple[int, int]
    key_grid: tuple[int, int]
    weights: np.ndarray

    def patch_at(self, down: float, across: float) -> tuple[int, int]:
        """(row, column) of the patch at these fractions (0 to 1) of the image's height and width."""
        rows, columns = self.grid
        return min(int(down * rows), rows - 1), min(int(across * columns), columns - 1)

    def of_patch(self, row: int, column: int) -> np.ndarray:
        """The attention map of one patch, on the key grid: (rows, columns)."""
        return self.weights[row * self.grid[1] + column].reshape(self.key_grid)


def find_pvt(model: PreTrainedModel) -> PreTrainedModel | None:
    """The model itself if it is a PVT, else the first PVT inside it, such as a backbone; None if there is none."""
    for module in model.modules():
        # By model type: a checkpoint with code of its own has classes of its own.
        if isinstance(module, PreTrainedModel) and module.config.model_type == "pvt":
            return module
    return None


def _steps(config: PreTrainedConfig) -> list[int]:
    """Side in pixels of the image area behind one key, for each stage."""
    strides = itertools.accumulate(config.patch_sizes, operator.mul)
    return [stride * ratio for stride, ratio in zip(strides, config.sequence_reduction_ratios)]


def attention_inputs(
    pvt: PreTrainedModel, processor: BaseImageProcessor, image: Image.Image, area: int
) -> torch.Tensor:
    """
    The whole image, resized and normalised for the model.

    Both sides are multiples of the largest key area (32 pixels in a PVT), so that no stage ignores a row or column.

    Args:
        pvt: a model of type "pvt"; see [`find_pvt`].
        processor: normalises the image.
        image: PIL image.
        area: the number of pixels to aim for; limited to LEAST_AREA ... LARGEST_AREA.

    Returns:
        pixel_values (1, channels, height, width).
    """
    step = math.lcm(*_steps(pvt.config))
    units = min(max(area, LEAST_AREA), LARGEST_AREA) / step**2
    scale = math.sqrt(units / (image.width * image.height))
    width, height = (step * min(max(round(side * scale), 1), int(units)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return processor(resized, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def stage_attention(pvt: PreTrainedModel, pixel_values: torch.Tensor) -> list[StageAttention]:
    """
    The attention of every stage for one image.

    Args:
        pvt: a model of type "pvt"; see [`find_pvt`].
        pixel_values: (1, channels, height, width).

    Returns:
        One [`StageAttention`] per stage; a backbone builds no stages after the last of its `out_features`.
    """
    config = pvt.config
    pixel_values = pixel_values.to(pvt.device)
    attentions = pvt(pixel_values, output_attentions=True).attentions
    grids, stages = config.grid_sizes(*pixel_values.shape[-2:]), []
    for stage, end in enumerate(itertools.accumulate(config.depths)):
        if end > len(attentions):
            break
        grid, ratio = grids[stage], config.sequence_reduction_ratios[stage]
        key_grid = (grid[0] // ratio, grid[1] // ratio)
        # A cls token comes first, in queries and keys. (Its stage has no reduction.) Slicing from the end drops it.
        weights = attentions[end - 1][0].float().mean(dim=0)[-math.prod(grid) :, -math.prod(key_grid) :]
        stages.append(StageAttention(grid, key_grid, weights.cpu().numpy()))
    return stages
