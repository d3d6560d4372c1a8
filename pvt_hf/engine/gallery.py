"""A few samples of an evaluation, for people to look at: the first ones, and those with the largest errors."""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from PIL import Image


FIRST, WORST = 12, 12
LONGEST_SIDE = 480  # pixels of a kept image; larger ones are reduced


@dataclass
class Shown:
    """
    One sample of an evaluation.

    Attributes:
        name: its sample id.
        image: JPEG, as the model saw it.
        truth, prediction: dicts with one of
            `classes`, a list of (label, score from 0 to 1), best first; in the truth without scores, (label, None);
            `map`, a PNG of class indices (255: no class), of the image's size;
            `objects`, a list of (box_xyxy in pixels of the image, label, score or None), with `masks`, if there are
            any: a PNG of the image's size for each object, 0 or 255.
        figures: what the error consists of, such as `{"loss": 1.2}`.
    """

    name: str
    image: bytes
    truth: dict[str, Any]
    prediction: dict[str, Any]
    figures: dict[str, float]


@dataclass
class Gallery:
    """
    The samples of one process, or of all. Bounded: FIRST and WORST of them.

    Args:
        mean, std: with which the images were normalised, one number per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    first: list[Shown] = field(default_factory=list)
    worst: list[tuple[tuple[float, ...], str, Shown]] = field(default_factory=list)  # a heap, the smallest error first

    @classmethod
    def of_processor(cls, processor: Any) -> Gallery:
        """For the images of an image processor."""
        mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
        if mean is None or std is None or not getattr(processor, "do_normalize", True):
            return cls((0.0,) * 3, (1.0,) * 3)
        return cls(tuple(mean), tuple(std))

    def offer(self, name: str, error: tuple[float, ...], make: Callable[[], Shown]) -> None:
        """
        Keeps a sample if it is one of the first, or if its error is one of the largest.

        Args:
            error: compared with that of others, number by number; the first is 0 if there is nothing to complain about.
            make: makes the sample; called only if it is kept.
        """
        entry = (error, name)
        is_worst = error[0] > 0 and (len(self.worst) < WORST or entry > self.worst[0][:2])
        if len(self.first) >= FIRST and not is_worst:
            return
        shown = make()
        if len(self.first) < FIRST:
            self.first.append(shown)
        if is_worst:
            heapq.heappush(self.worst, (*entry, shown))
            if len(self.worst) > WORST:
                heapq.heappop(self.worst)

    def merged(self, parts: Iterable[Gallery]) -> Gallery:
        """The gallery of several processes; the worst first."""
        parts = list(parts)
        turns = chain.from_iterable(zip_longest(*(part.first for part in parts)))
        first = [shown for shown in turns if shown is not None][:FIRST]
        worst = sorted((entry for part in parts for entry in part.worst), key=lambda entry: entry[:2], reverse=True)
        return Gallery(self.mean, self.std, first, worst[:WORST])

    def picture(self, pixel_values: torch.Tensor) -> Image.Image:
        """
        The image (3, height, width) that a model got, with its longer side reduced to LONGEST_SIDE: float as the
        processor normalised it, or uint8.
        """
        pixels = pixel_values.float().cpu()
        if pixel_values.dtype != torch.uint8:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
            pixels = (pixels * std + mean) * 255
        array = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        image = Image.fromarray(array)
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return image


def to_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def to_png_mask(mask: np.ndarray, size: tuple[int, int]) -> bytes:
    """A mask (height, width), 0 or 1, as a PNG of `size`, (width, height): 255 where at least half is in the mask."""
    buffer = io.BytesIO()
    image = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    image.point(lambda value: 255 * (value > 127)).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def to_png_map(labels: torch.Tensor, size: tuple[int, int]) -> bytes:
    """
    Labels (height, width), of at most 255 classes and 255 for none, as a PNG of `size`, (width, height), by nearest
    neighbour.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
    image.resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()
