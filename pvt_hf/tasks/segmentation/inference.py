"""
Three ways to predict the label map of an image of any size: at the size that the processor gives it, averaged over
several sizes, and with a sliding window.

Each is a class. Calling it with a PIL RGB image returns the image's views: uint8 or float tensors (3, h, w). That is
cheap and is done by loader processes, so the classes can be pickled. `predict(model, views, size)` then predicts:

    model: maps pixel values (batch, 3, h, w) on the CPU to an output with `logits` (batch, classes, rows, columns) on
        any device.
    views: the views of one image.
    size: (height, width) of the image.

    Returns an integer tensor (height, width) on the CPU: for each pixel the class with the highest score, after the
    scores are resized to the size of the image (bilinear, align_corners=False).

None of them makes a tensor (classes, height, width), which would take 29 GB for 150 classes and 8000x6000 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ...data.samples import ProcessorTransform
from ...models.image_processing_semantic import MAX_SCORES, best_classes
from ...models.image_processing_sizes import SIZE_DIVISOR
from .settings import RATIOS


Forward = Callable[[torch.Tensor], Any]

# Most scores in a band of sliding windows: 1 GB of float32, for any image size and number of classes
MAX_BAND_SCORES = 2**28
# Most scores that are resized at once: 16 MB, twice as fast as resizing a whole window with 150 classes
SCORES_AT_ONCE = 2**22


class SingleScale:
    """
    Predicts the image at the size that the processor gives it: by default 512 pixels for the shorter side, or less if
    the longer one would exceed 2048, then both rounded up to multiples of 32.

    Source: the official `segmentation/configs/_base_/datasets/ade20k.py`, with `segmentation/align_resize.py`.
    """

    def __init__(self, processor: Any):
        self.transform = ProcessorTransform(processor)

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [self.transform(image)]

    @torch.no_grad()
    def predict(self, model: Forward, views: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        (view,) = views
        return best_classes(model(view[None]).logits[0], *size).cpu()


class MultiScale:
    """
    Averages the class probabilities (softmax at the size of the image) over several scales, each of them also mirrored.

    A scale is the processor's `size` times a ratio, rounded down. Source: mmsegmentation's `MultiScaleFlipAug` and
    `EncoderDecoder.aug_test`. Deviation: those keep the probabilities of the whole image; here the logits of the views
    are kept, which are smaller, and the probabilities are computed from them for a few rows at a time.

    Args:
        processor: the model's image processor.
        ratios: one scale for each.
        flip: whether each scale is also predicted mirrored.

    Raises:
        ValueError: there is no ratio, or one is not positive.
    """

    def __init__(self, processor: Any, ratios: Sequence[float] = RATIOS, flip: bool = True):
        if not ratios or min(ratios) <= 0:
            raise ValueError(f"ratios must be one or more positive numbers, got {list(ratios)}.")
        self.processor, self.flip = processor, flip
        given = {side: pixels for side, pixels in dict(processor.size).items() if pixels}
        self.sizes = [{side: max(int(pixels * ratio), 1) for side, pixels in given.items()} for ratio in ratios]

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        """One view per ratio. `predict` makes the mirrored ones."""
        return [torch.as_tensor(self.processor(image, size=size)["pixel_values"][0]) for size in self.sizes]

    @torch.no_grad()
    def predict(self, model: Forward, views: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        logits = []  # per view (classes, rows, columns)
        for view in views:
            logits.append(model(view[None]).logits[0].float())
            if self.flip:
                logits.append(model(view.flip(-1)[None]).logits[0].float().flip(-1))
        height, width = size
        rows = max(MAX_SCORES // (len(logits[0]) * width), 1)
        labels = torch.empty(size, dtype=torch.int64)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            total = torch.zeros((), device=logits[0].device)
            for scores in logits:
                total = total + resized_rows(scores, size, top, bottom).softmax(dim=0)
            labels[top:bottom] = total.argmax(dim=0)
        return labels


def resized_rows(scores: torch.Tensor, size: tuple[int, int], top: int, bottom: int) -> torch.Tensor:
    """
    Resizes scores (classes, h, w), float32, to `size`, (height, width), but computes only the rows from `top` up to
    `bottom` (exclusive). Equal to those rows of `interpolate` (bilinear, align_corners=False) except for rounding.

    Returns:
        (classes, bottom - top, width) float32.
    """
    last = scores.shape[1] - 1
    rows = torch.arange(top, bottom, dtype=torch.float64, device=scores.device)
    positions = ((rows + 0.5) * scores.shape[1] / size[0] - 0.5).clamp(0, last)
    above = positions.long()
    weights = (positions - above).float()[:, None]
    band = torch.lerp(scores[:, above], scores[:, (above + 1).clamp(max=last)], weights)
    return F.interpolate(band[None], size=(bottom - top, size[1]), mode="bilinear", align_corners=False)[0]


class SlidingWindow:
    """
    Slides a window over the image at the image's own resolution. Where windows overlap, their logits are averaged.

    Source: mmsegmentation's `EncoderDecoder.slide_inference`, with the same positions (every `stride` pixels, the last
    window at the border) and the same averaging. Each window is prepared by the processor like an image, resized to
    multiples of 32, rounded up. That changes only windows whose size is no such multiple, for example those limited by
    a small image. With a window that covers the image, the result is that of [`SingleScale`] with a processor that
    keeps the size.

    Besides the image and the label map, memory use is bounded. The image is cut into vertical stripes. In a stripe the
    windows go from top to bottom, and their logits are added up in a band as high as a window; rows of the band are
    finished when the next windows begin below them. A stripe has 3,495 columns for 150 classes and a window of 512
    pixels; windows on the border between two stripes are computed twice.

    Args:
        processor: the model's image processor.
        window: height and width in pixels, a multiple of 32, preferably the size of the training crops.
        stride: distance between windows in pixels, at most `window`.

    Raises:
        ValueError: `stride` is below 1 or leaves gaps.
    """

    def __init__(self, processor: Any, window: int = 512, stride: int = 341):
        if not 1 <= stride <= window:
            raise ValueError(f"stride must be at least 1 and at most the window of {window} pixels, got {stride}.")
        self.processor, self.window, self.stride = processor, window, stride

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        """The image itself as uint8, a quarter of the size of the prepared image."""
        return [torch.from_numpy(np.array(image)).permute(2, 0, 1)]

    @torch.no_grad()
    def predict(self, model: Forward, views: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        (image,) = views
        labels = torch.empty(size, dtype=torch.int32)
        finished = 0
        while finished < size[1]:
            finished = self._label_stripe(model, image, finished, labels)
        return labels

    def _label_stripe(self, model: Forward, image: torch.Tensor, start: int, labels: torch.Tensor) -> int:
        """Predicts a stripe: fills `labels` from column `start` up to the column that is returned (exclusive)."""
        height, width = labels.shape
        tops, lefts = self._places(height), self._places(width)
        rows, columns = min(self.window, height), min(self.window, width)
        band: Any = None  # (classes, rows, columns) from the first window on
        stop = width
        for top, next_top in zip(tops, [*tops[1:], height]):
            for left in (left for left in lefts if left + columns > start):
                if left >= stop:
                    break
                logits = self._logits(model, image[:, top : top + rows, left : left + columns])
                if band is None:  # the number of classes, now known, limits the width of the stripe
                    stripes = -(-(width - start) // max(MAX_BAND_SCORES // (len(logits) * rows), 1))
                    stop = start + -(-(width - start) // stripes)
                    band = logits.new_zeros(len(logits), rows, stop - start)
                first, last = max(left, start), min(left + columns, stop)
                few = max(SCORES_AT_ONCE // (rows * columns), 1)
                for part, added in zip(band.split(few), logits.split(few)):
                    scores = F.interpolate(added[None], size=(rows, columns), mode="bilinear", align_corners=False)[0]
                    part[:, :, first - start : last - start] += scores[:, :, first - left : last - left]
            done = next_top - top
            # Sums will do: the mean would divide all scores of a pixel by the same number of windows.
            labels[top:next_top, start:stop] = band[:, :done].argmax(dim=0)
            for scores in band:
                scores[: rows - done] = scores[done:].clone()
                scores[rows - done :] = 0
        return stop

    def _places(self, side: int) -> list[int]:
        last = max(side - self.window, 0)
        return [*range(0, last, self.stride), last]

    def _logits(self, model: Forward, part: torch.Tensor) -> torch.Tensor:
        """Logits (classes, rows, columns) float32, at the model's resolution, of a window (3, h, w) uint8."""
        picture = Image.fromarray(np.ascontiguousarray(part.permute(1, 2, 0).numpy()))
        height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in part.shape[1:])  # rounded up
        pixels = self.processor(picture, size={"height": height, "width": width})["pixel_values"][0]
        return model(torch.as_tensor(pixels)[None]).logits[0].float()
