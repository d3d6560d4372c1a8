"""
The training transform for semantic segmentation, with the settings of the paper's recipe as defaults.

It follows the train pipeline of the official `segmentation/configs/_base_/datasets/ade20k.py`, which uses
mmsegmentation: rescaling, cropping, flipping, photometric distortion, normalisation, padding. The steps are
torchvision's (v2), except for two that it does not have. All draw from torch's global generator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import SizeDict

from ...models.image_processing_semantic import IGNORE_LABEL
from ...models.image_processing_sizes import rescaled_size


CROP_TRIES = 10  # mmsegmentation's `RandomCrop`


class RandomRescale(v2.Transform):
    """
    Draws a factor, multiplies both limits by it, and resizes to the largest size of the same aspect ratio within them:
    bilinear with antialiasing for images, nearest for masks.

    Source: mmsegmentation's `Resize` with `ratio_range`. That resizes with OpenCV, whose bilinear filter does not
    average pixels where it shrinks; here they are averaged, as in the image processor.

    Args:
        shortest_edge, longest_edge: limits in pixels of the shorter and the longer side, at factor 1.
        min_scale, max_scale: range of the factor, drawn uniformly.
    """

    def __init__(self, shortest_edge: int, longest_edge: int, min_scale: float, max_scale: float):
        super().__init__()
        self.shortest_edge, self.longest_edge = shortest_edge, longest_edge
        self.min_scale, self.max_scale = min_scale, max_scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = torch.empty(()).uniform_(self.min_scale, self.max_scale).item()
        limits = SizeDict(
            shortest_edge=max(int(self.shortest_edge * factor), 1), longest_edge=max(int(self.longest_edge * factor), 1)
        )
        height, width = F.get_size(flat_inputs[0])
        return {"size": rescaled_size(height, width, limits)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, size=list(params["size"]), antialias=True)


class RandomCropOfClasses(v2.Transform):
    """
    Crops a random window; of a side that is smaller, all. A window in which one class has `max_class_share` or more of
    the labelled pixels, or all of them, is drawn again, up to ten times; the last one is used in any case.

    Source: mmsegmentation's `RandomCrop` with `cat_max_ratio`. Inputs: an image and its `Mask`.
    """

    def __init__(self, height: int, width: int, max_class_share: float):
        super().__init__()
        self.height, self.width, self.max_class_share = height, width, max_class_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        rows, columns = F.get_size(flat_inputs[0])
        height, width = min(self.height, rows), min(self.width, columns)
        mask = next(part for part in flat_inputs if isinstance(part, tv_tensors.Mask))
        for _ in range(1 + (CROP_TRIES if self.max_class_share < 1 else 0)):
            top = int(torch.randint(rows - height + 1, ()))
            left = int(torch.randint(columns - width + 1, ()))
            window = mask[..., top : top + height, left : left + width]
            if self._is_mixed(window):
                break
        return {"top": top, "left": left, "height": height, "width": width}

    def _is_mixed(self, window: torch.Tensor) -> bool:
        counts = window.flatten().bincount(minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
        return int((counts > 0).sum()) > 1 and bool(counts.max() / counts.sum() < self.max_class_share)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class PhotometricDistortion(v2.RandomPhotometricDistort):
    """
    Changes brightness, contrast, saturation and hue, each with probability 0.5; contrast before or after the colours.

    Source: mmsegmentation's `PhotoMetricDistortion`, with its ranges; torchvision's permutation of channels is off.
    Deviations: brightness is a factor of 1 ± 32/255 here, and adds ± 32 grey levels there; contrast moves away from the
    mean grey here, and is a factor there; saturation moves away from the grey image here, and is a factor of HSV's
    saturation there. Hue is the same: ± 36 degrees.
    """

    def __init__(self) -> None:
        super().__init__(
            brightness=(1 - 32 / 255, 1 + 32 / 255), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.1, 0.1)
        )

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class SegmentationTransform:
    """
    Turns a PIL RGB image and its labels (H, W) into `pixel_values` (3, crop_size, crop_size) float32 and labels
    (crop_size, crop_size) int64. An image that does not fill the crop is padded at the right and bottom: with 0 after
    normalisation, and with label 255.

    Args:
        mean, std: per channel, of values in [0, 1].
        crop_size: side of the result in pixels.
        shortest_edge, longest_edge: limits in pixels of the image's sides before the crop, at scale 1.
        min_scale, max_scale: range of a factor on these limits.
        max_class_share: largest share of a single class in the crop; 1 accepts any crop.
        horizontal_flip: probability.
        photometric: whether to distort colours.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        crop_size: int = 512,
        shortest_edge: int = 512,
        longest_edge: int = 2048,
        min_scale: float = 0.5,
        max_scale: float = 2.0,
        max_class_share: float = 0.75,
        horizontal_flip: float = 0.5,
        photometric: bool = True,
    ):
        self.crop_size = crop_size
        self.steps = v2.Compose(
            [
                RandomRescale(shortest_edge, longest_edge, min_scale, max_scale),
                RandomCropOfClasses(crop_size, crop_size, max_class_share),
                v2.RandomHorizontalFlip(horizontal_flip),
                *([PhotometricDistortion()] if photometric else []),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __call__(self, image: Image.Image, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        mask = tv_tensors.Mask(torch.from_numpy(labels.astype(np.uint8)))  # faster to resize than int64
        pixel_values, mask = self.steps(v2.functional.to_image(image), mask)
        rows, columns = mask.shape
        padding = [0, 0, self.crop_size - columns, self.crop_size - rows]  # left, top, right, bottom
        pixel_values, mask = F.pad(pixel_values, padding, fill=0), F.pad(mask, padding, fill=IGNORE_LABEL)
        return pixel_values.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor).long()
