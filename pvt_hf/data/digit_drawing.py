"""Drawing the built-in digits: canvases, ink, and scenes of digits that hide little of each other."""

from __future__ import annotations

import colorsys
import functools
from typing import Any

import numpy as np
from PIL import Image


SOURCE_SIZE = 8
# A digit is not placed where it would leave less than this share of another digit's ink visible.
MIN_VISIBLE_SHARE = 0.8
PLACEMENT_TRIES = 30

INK_LEVEL = 0.45  # grey level at which ink begins: high enough to keep narrow holes, low enough to keep thin strokes
INK_CONTRAST = 3.0  # of the edges of strokes, which are soft after upsampling
GOLDEN_RATIO = 0.618  # steps of this share of the colour circle keep the hues of a scene apart
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@functools.cache
def source_digits() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels scaled to 0..1, (1797, 8, 8) float32, and classes, (1797,) int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The built-in digits come with scikit-learn: `pip install scikit-learn`.") from error
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target


def draw_digit(rng: np.random.Generator, source_index: int, image_size: int) -> np.ndarray:
    """A digit that fills most of a square, slightly off centre, (image_size, image_size, 3) uint8."""
    grey_levels, _ = source_digits()
    image = draw_canvas(rng, image_size, image_size)
    opacity = upsample(grey_levels[source_index], round(image_size * rng.uniform(0.9, 1.0)))
    window = draw_window(rng, (image_size, image_size), opacity.shape)
    paint(image[window], opacity, draw_ink(rng, hue=rng.random()))
    return image


def draw_scene(
    rng: np.random.Generator, height: int, width: int, sources: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Paints digits of these source indices and sizes over each other, in their order. A digit that finds no place in 30
    tries is left out.

    Returns:
        The image, (height, width, 3) uint8; the visible object at each pixel, (height, width) int32, 0 for the canvas
        and k for the k-th digit that found a place; and the source indices of these digits, (n,) int64.
    """
    grey_levels, _ = source_digits()
    first_hue = rng.random()
    image = draw_canvas(rng, height, width)
    object_map = np.zeros((height, width), dtype=np.int32)
    ink_pixels = np.zeros(len(sources) + 1, dtype=np.int64)  # by object; 0 is the canvas
    visible_pixels = np.zeros(len(sources) + 1, dtype=np.int64)
    placed: list[int] = []
    for source_index, size in zip(sources, sizes, strict=True):
        opacity = upsample(grey_levels[source_index], size)
        box: Any = Image.fromarray(opacity > 0).getbbox()  # there is ink in every digit
        left, top, right, bottom = box
        opacity = opacity[top:bottom, left:right]
        ink = opacity >= 0.5
        for _ in range(PLACEMENT_TRIES):
            window = draw_window(rng, (height, width), ink.shape)
            still_visible = visible_pixels - np.bincount(object_map[window][ink], minlength=len(visible_pixels))
            if (still_visible[1:] >= MIN_VISIBLE_SHARE * ink_pixels[1:]).all():
                break
        else:
            continue
        placed.append(source_index)
        number = len(placed)
        paint(image[window], opacity, draw_ink(rng, hue=first_hue + number * GOLDEN_RATIO))
        object_map[window][ink] = number
        visible_pixels = still_visible
        visible_pixels[number] = ink_pixels[number] = np.count_nonzero(ink)
    return image, object_map, np.array(placed, dtype=np.int64)


def upsample(grey_levels: np.ndarray, size: int) -> np.ndarray:
    """(8, 8) grey levels in 0..1 to the opacity of the ink, (size, size) float32 in 0..1, with smooth outlines."""
    # Strokes touch the border of the source. Padding it by a cell, half of which is kept, lets their outline close.
    padded = Image.fromarray(np.pad(grey_levels, 1))
    box = (0.5, 0.5, SOURCE_SIZE + 1.5, SOURCE_SIZE + 1.5)
    levels = np.asarray(padded.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return np.clip((levels - INK_LEVEL) * INK_CONTRAST + 0.5, 0, 1)


def draw_window(rng: np.random.Generator, canvas_shape: tuple, shape: tuple) -> tuple[slice, slice]:
    """A random window of this shape on the canvas."""
    top, left = rng.integers(np.subtract(canvas_shape, shape), endpoint=True)
    return slice(top, top + shape[0]), slice(left, left + shape[1])


def draw_canvas(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth, light mixture of two related colours, (height, width, 3) uint8."""
    hue = rng.random()
    first = colour(hue, rng.uniform(0.15, 0.5), luma=0.76)
    second = colour(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.15, 0.5), luma=0.96)
    cells = np.maximum(2, np.round(np.array([height, width]) * 4 / min(height, width)).astype(int))
    coarse = Image.fromarray(rng.random(cells, dtype=np.float32))
    fine_cells = 3 * cells
    share = np.asarray(coarse.resize(fine_cells[::-1], Image.Resampling.BICUBIC)) + rng.uniform(-0.2, 0.2, fine_cells)
    share = share.clip(0, 1)[..., None]
    grid = (first * share + second * (1 - share)).round().astype(np.uint8)
    canvas = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(canvas)


def draw_ink(rng: np.random.Generator, hue: float) -> np.ndarray:
    """A colour darker than any canvas, (3,) in 0..255."""
    return colour(hue, rng.uniform(0.65, 1.0), luma=rng.uniform(0.2, 0.4))


def colour(hue: float, saturation: float, luma: float) -> np.ndarray:
    """The colour of this hue, darkened or mixed with white until it has this luma; (3,) in 0..255."""
    full = np.array(colorsys.hsv_to_rgb(hue % 1, saturation, 1.0))
    full_luma = full @ LUMA
    if full_luma >= luma:
        return full * (luma / full_luma) * 255
    return (full + (1 - full) * (luma - full_luma) / (1 - full_luma)) * 255


def paint(window: np.ndarray, opacity: np.ndarray, ink: np.ndarray) -> None:
    """Paints ink of this opacity (h, w) onto a window of an image, in place."""
    window[:] = np.round(window + opacity[..., None] * (ink - window))
