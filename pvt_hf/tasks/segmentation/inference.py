"""
Three ways to label the pixels of an image of any size: as the processor prepares it, at several scales, and through a
window that slides over it.

Each is called with a PIL RGB image and gives its views, uint8 or float tensors (3, h, w): cheap work that loader
workers can do, so the classes can be pickled. `predict(model, views, size)` then makes the label map:

    model: a callable from pixel values (batch, 3, h, w), on the CPU, to an output with `logits` (batch, classes, rows,
        columns), on any device.
    views: of one image.
    size: its own (height, width).

    Returns an integer tensor (height, width) on the CPU: for each pixel the class whose score, resized to the image's
    own size (bilinear, align_corners=False), is the largest.

No tensor of (classes, height, width) is ever made: that would be 29 GB for 150 classes and 8000x6000 pixels.
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


Forward = Callable[[torch.Tensor], Any]

# Of the row in the PVT paper's Table 5 with multi-scale testing. It does not say which; these are in the official
# segmentation/configs/_base_/datasets/ade20k.py, commented out.
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

# Scores that a band of sliding windows adds up: 1 GB of float32, whatever the image's size and the number of classes.
MAX_BAND_SCORES = 2**28
# Resized at once before they are added: 16 MB, which takes half the time of a whole window of 150 classes
SCORES_AT_ONCE = 2**22


class SingleScale:
    """
    The image as the processor prepares it; by default shorter side to 512, at most 2048, sides to multiples of 32.

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
    The mean of the probabilities (softmax at the image's own size) at several scales, each as it is and mirrored.

    A scale is the processor's `size` times a ratio, rounded down. All of it as mmsegmentation's `MultiScaleFlipAug` and
    `EncoderDecoder.aug_test` do it; but that keeps whole maps of probabilities, and this the logits of the views (at
    stride 4, of sizes that the processor's size bounds), from which the probabilities are made a few rows at a time.

    Args:
        processor: of the model.
        ratios: of the scales.
        flip: whether each scale is mirrored as well.

    Raises:
        ValueError: no ratio, or one that is not positive.
    """

    def __init__(self, processor: Any, ratios: Sequence[float] = RATIOS, flip: bool = True):
        if not ratios or min(ratios) <= 0:
            raise ValueError(f"ratios must be positive, and at least one, got {list(ratios)}.")
        self.processor, self.flip = processor, flip
        given = {side: pixels for side, pixels in dict(processor.size).items() if pixels}
        self.sizes = [{side: max(int(pixels * ratio), 1) for side, pixels in given.items()} for ratio in ratios]

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        """One view per ratio; the mirrored ones are made of these by `predict`."""
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
    The rows from `top` up to `bottom` of scores (classes, h, w), float32, resized to `size`, (height, width).

    What `interpolate` (bilinear, align_corners=False) gives there, but for rounding: (classes, bottom - top, width).
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
    A window that slides over the image at the image's own resolution; where windows overlap, their logits are averaged.

    Places and averaging are those of mmsegmentation's `EncoderDecoder.slide_inference`: every `stride` pixels, and the
    last one at the border. Each window is prepared as if it were an image, with its own size up to multiples of 32, to
    which it is resized: only windows that are smaller than `window`, as the image is, change. A window that covers the
    image gives what [`SingleScale`] does with a processor that keeps the size.

    Beside image and label map the memory is constant: the windows go from top to bottom over a stripe of the image and
    add up in a band as high as a window, whose upper rows are finished when the next windows begin below them. An image
    that needs several stripes (3,495 columns are one for 150 classes and 512 pixels) has the windows on the borders
    between them computed twice.

    Args:
        processor: of the model.
        window: side in pixels, preferably that of the crops of the training, and a multiple of 32.
        stride: pixels from one window to the next, at most `window`.

    Raises:
        ValueError: `stride` is below 1 or leaves gaps.
    """

    def __init__(self, processor: Any, window: int = 512, stride: int = 341):
        if not 1 <= stride <= window:
            raise ValueError(f"the stride must be at least 1 and at most the window of {window} pixels, got {stride}.")
        self.processor, self.window, self.stride = processor, window, stride

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        """The image itself, as uint8: a quarter of what it is when prepared."""
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
        """Fills in `labels` from column `start` to the one that is returned."""
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
                if band is None:  # now the number of classes is known, and so how wide a stripe can be
                    stripes = -(-(width - start) // max(MAX_BAND_SCORES // (len(logits) * rows), 1))
                    stop = start + -(-(width - start) // stripes)
                    band = logits.new_zeros(len(logits), rows, stop - start)
                first, last = max(left, start), min(left + columns, stop)
                few = max(SCORES_AT_ONCE // (rows * columns), 1)
                for part, added in zip(band.split(few), logits.split(few)):
                    scores = F.interpolate(added[None], size=(rows, columns), mode="bilinear", align_corners=False)[0]
                    part[:, :, first - start : last - start] += scores[:, :, first - left : last - left]
            done = next_top - top
            # Sums instead of means: each pixel's scores would be divided by the same number of windows.
            labels[top:next_top, start:stop] = band[:, :done].argmax(dim=0)
            for scores in band:
                scores[: rows - done] = scores[done:].clone()
                scores[rows - done :] = 0
        return stop

    def _places(self, side: int) -> list[int]:
        last = max(side - self.window, 0)
        return [*range(0, last, self.stride), last]

    def _logits(self, model: Forward, part: torch.Tensor) -> torch.Tensor:
        """(3, h, w) uint8 to (classes, rows, columns) float32, at the resolution of the model."""
        picture = Image.fromarray(np.ascontiguousarray(part.permute(1, 2, 0).numpy()))
        height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in part.shape[1:])  # rounded up
        pixels = self.processor(picture, size={"height": height, "width": width})["pixel_values"][0]
        return model(torch.as_tensor(pixels)[None]).logits[0].float()
