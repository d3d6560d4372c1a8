"""Sizes of images: what a resize gives, by torchvision's and by mmcv's arithmetic, and the sizes to go back to."""

from collections.abc import Sequence
from typing import Any

from transformers.image_utils import SizeDict, get_image_size_for_max_height_width


# Keeping the aspect ratio of a very elongated image multiplies its area; 2**28 RGB pixels are 0.8 GB.
MAX_RESIZED_PIXELS = 2**28
SIZE_DIVISOR = 32  # the stride of the last stage, which drops the rows and columns beyond a multiple of it


def check_pixels(name: str, height: int, width: int) -> None:
    """Raises a ValueError if the setting `name` asks for more pixels than MAX_RESIZED_PIXELS."""
    if height * width > MAX_RESIZED_PIXELS:
        raise ValueError(f"{name} is {height}x{width}; expected at most {MAX_RESIZED_PIXELS:,} pixels.")


def resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """The (height, width) after a resize, by torchvision's arithmetic (`Resize` with `size` and `max_size`).

    Transformers' helper for `shortest_edge` with `longest_edge` rounds differently and can give 0; here every side is
    at least 1.

    Raises:
        ValueError: `size` has an unsupported set of keys, or the result would exceed MAX_RESIZED_PIXELS.
    """
    if size.height and size.width:
        check_pixels("size", size.height, size.width)
        return size.height, size.width
    short, long = min(height, width), max(height, width)
    if size.shortest_edge:
        new_short, new_long = size.shortest_edge, int(size.shortest_edge * long / short)
        if size.longest_edge and new_long > size.longest_edge:
            new_short, new_long = int(size.longest_edge * new_short / new_long), size.longest_edge
    elif size.longest_edge:
        new_short, new_long = int(size.longest_edge * short / long), size.longest_edge
    elif size.max_height and size.max_width:
        return _largest_within(height, width, size.max_height, size.max_width)
    else:
        raise ValueError(
            f"size={dict(size)}; expected positive 'height' and 'width', 'shortest_edge' (with or without "
            "'longest_edge'), 'longest_edge', or 'max_height' and 'max_width'."
        )
    new_short = max(new_short, 1)
    if new_short * new_long > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"an image of {height}x{width} is so elongated that it would be resized to {new_short}x{new_long} pixels. "
            "Crop it, or give size={'height': ..., 'width': ...} or a 'longest_edge'."
        )
    return (new_long, new_short) if width <= height else (new_short, new_long)


def _largest_within(height: int, width: int, max_height: int, max_width: int) -> tuple[int, int]:
    """The largest (height, width) within `max_height` and `max_width`, by Transformers' arithmetic; at least 1x1."""
    height, width = get_image_size_for_max_height_width((height, width), max_height, max_width)
    return max(height, 1), max(width, 1)


def rescaled_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """The (height, width) after a resize, by mmcv's arithmetic (`rescale_size`), for segmentation and detection.

    One factor for both sides makes the shorter side `shortest_edge`, or less if the longer side would exceed
    `longest_edge`; halves are rounded up. {"height", "width"} is returned unchanged. {"max_height", "max_width"} gives
    the largest size within both, as in Transformers' DETR. Unlike in mmcv, every side is at least 1.

    Raises:
        ValueError: `size` has other keys, or the result would exceed MAX_RESIZED_PIXELS.
    """
    if size.height and size.width:
        scaled = (size.height, size.width)
    elif size.shortest_edge:
        factor = size.shortest_edge / min(height, width)
        if size.longest_edge:
            factor = min(factor, size.longest_edge / max(height, width))
        scaled = (max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1))
    elif size.max_height and size.max_width:
        scaled = _largest_within(height, width, size.max_height, size.max_width)
    else:
        raise ValueError(
            f"size={dict(size)}; expected positive 'shortest_edge' (with or without 'longest_edge'), 'height' and "
            "'width', or 'max_height' and 'max_width'."
        )
    if scaled[0] * scaled[1] > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"an image of {height}x{width} would be resized to {scaled[0]}x{scaled[1]} pixels. Crop it, or give a "
            "smaller size, such as one with a 'longest_edge'."
        )
    return scaled


def resize_steps(height: int, width: int, size: SizeDict) -> list[tuple[int, int]]:
    """The (height, width) after each of mmsegmentation's two resizes: to scale, then up to multiples of 32.

    The first is `rescaled_size` (and raises its errors); the second is `AlignResize` of the official code
    (segmentation/align_resize.py). {"height", "width"} is a single step.
    """
    scaled = rescaled_size(height, width, size)
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in scaled)  # rounded up
    aligned = (height, width)
    return [aligned] if size.height else [scaled, aligned]


def sizes_per_image(target_sizes: Any, batch: int) -> Sequence[tuple[int, int] | None]:
    """`target_sizes` (None, a list of (height, width) or a (batch, 2) tensor) as one entry per image.

    Raises:
        ValueError: not one size per image, or one that is not a positive (height, width).
    """
    if target_sizes is None:
        return [None] * batch
    sizes: list[Any] = [size.tolist() if hasattr(size, "tolist") else size for size in target_sizes]
    if len(sizes) != batch:
        raise ValueError(f"{len(sizes)} target_sizes for a batch of {batch}; expected one (height, width) per image.")
    if not all(isinstance(size, (tuple, list)) and len(size) == 2 and min(size) >= 1 for size in sizes):
        raise ValueError(f"target_sizes={sizes}; expected a positive (height, width) per image.")
    return sizes


__all__ = ["check_pixels", "rescaled_size", "resize_steps", "resized_size", "sizes_per_image"]
