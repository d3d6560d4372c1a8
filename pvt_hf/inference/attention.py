"""Where the patches of an image look: the reduced attention of every stage, of a PVT by itself or inside a head."""

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


# Pixels: smaller images leave the last stage too few keys to tell apart; the maps of larger ones fill the memory (a
# stage's map has pixels^2 / (stride^4 * reduction^2) entries per head and block).
LEAST_AREA, LARGEST_AREA = 128**2, 448**2


@dataclass(frozen=True)
class StageAttention:
    """
    The attention of a stage's last block, its heads averaged.

    Attributes:
        grid: (rows, columns) of the patches that look.
        key_grid: (rows, columns) of the reduced grid that they look at.
        weights: (grid's rows * columns, key_grid's rows * columns) float32. A row sums to 1, less what a cls token got.
    """

    grid: tuple[int, int]
    key_grid: tuple[int, int]
    weights: np.ndarray

    def patch_at(self, down: float, across: float) -> tuple[int, int]:
        """(row, column) of the patch at these shares of the image's height and width, from 0 to 1."""
        rows, columns = self.grid
        return min(int(down * rows), rows - 1), min(int(across * columns), columns - 1)

    def of_patch(self, row: int, column: int) -> np.ndarray:
        """Where this patch looks: (key_grid's rows, columns)."""
        return self.weights[row * self.grid[1] + column].reshape(self.key_grid)


def find_pvt(model: PreTrainedModel) -> PreTrainedModel | None:
    """The model if it is a PVT, else the first that it contains, such as the backbone of a head; None without one."""
    for module in model.modules():
        # Not by class: code loaded from a repository brings its own.
        if isinstance(module, PreTrainedModel) and module.config.model_type == "pvt":
            return module
    return None


def _steps(config: PreTrainedConfig) -> list[int]:
    """Pixels per side of what one key of each stage covers."""
    strides = itertools.accumulate(config.patch_sizes, operator.mul)
    return [stride * ratio for stride, ratio in zip(strides, config.sequence_reduction_ratios)]


def attention_inputs(
    pvt: PreTrainedModel, processor: BaseImageProcessor, image: Image.Image, area: int
) -> torch.Tensor:
    """
    The whole image, normalised as the model wants it, (1, channels, height, width): of about `area` pixels (kept from
    LEAST_AREA to LARGEST_AREA) and of sides of which every stage sees every row and column (multiples of 32).
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
    Args:
        pvt: a model of type "pvt"; see [`find_pvt`].
        pixel_values: (1, channels, height, width).

    Returns:
        One per stage that the model has (a backbone has none after the last one asked for).
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
        # The cls token, if there is one, comes first among queries and among keys; its stage is not reduced.
        weights = attentions[end - 1][0].float().mean(dim=0)[-math.prod(grid) :, -math.prod(key_grid) :]
        stages.append(StageAttention(grid, key_grid, weights.cpu().numpy()))
    return stages
