"""
COCO segmentations (polygons, run lengths) as masks.

pycocotools draws polygons and decodes run lengths. It trusts its input, and reads memory that is not its own where run
lengths do not fit the image, so that everything is checked here first.
"""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np


try:
    from pycocotools import mask as coco_mask
except ImportError:
    coco_mask = None


# Largest coordinate of a polygon, in multiples of the image's longer side: pycocotools allocates memory for the whole
# outline, outside the image as well.
FARTHEST = 10


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation as compressed run lengths, `{"size": [height, width], "counts": bytes}`.

    Args:
        segmentation: a list of polygons `[x1, y1, x2, y2, ...]` in pixels, whose union is the mask; or run lengths
            `{"size": [height, width], "counts": ...}` with compressed counts (str or bytes) or a list of them. Polygons
            of fewer than three points, of which COCO has a few, are skipped.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: no segmentation, broken polygons or run lengths, or run lengths of another size.
        TypeError: neither polygons nor run lengths.
    """
    if coco_mask is None:
        raise ImportError("COCO segmentations need pycocotools: `pip install pycocotools`.")
    if segmentation is None:
        raise ValueError("no 'segmentation', which masks need.")
    if isinstance(segmentation, Mapping):
        return _read_rle(segmentation, height, width)
    polygons = _read_polygons(segmentation, height, width)
    if not polygons:
        return coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO segmentation as a (height, width) uint8 mask of 0 and 1; arguments and errors of `segmentation_to_rle`."""
    rle = segmentation_to_rle(segmentation, height, width)
    return coco_mask.decode(rle)


def segmentation_to_box(segmentation: Any) -> list[float]:
    """The box [x, y, width, height], in pixels, around a COCO segmentation, for objects that have no box of their own.

    Raises:
        ImportError: run lengths without pycocotools.
        ValueError: no segmentation, nothing in it, or broken polygons or run lengths.
        TypeError: neither polygons nor run lengths.
    """
    if isinstance(segmentation, Mapping):
        size = segmentation.get("size")
        if coco_mask is None:
            raise ImportError("COCO's run lengths need pycocotools: `pip install pycocotools`.")
        if not isinstance(size, (list, tuple)) or len(size) != 2:
            raise ValueError(f"run lengths of size {size!r}; expected [height, width].")
        box = coco_mask.toBbox(_read_rle(segmentation, *size)).tolist()
        if not min(box[2:]):
            raise ValueError("no bbox, and run lengths without any pixel.")
        return box
    points = np.array([number for polygon in _as_arrays(segmentation or []) for number in polygon]).reshape(-1, 2)
    if not len(points) or not np.isfinite(points).all():
        raise ValueError("neither a bbox nor a polygon to compute it from.")
    first, last = points.min(axis=0), points.max(axis=0)
    return [*first.tolist(), *(last - first).tolist()]


def _read_polygons(polygons: Any, height: int, width: int) -> list[list[float]]:
    """The polygons of at least three points, checked."""
    limit, read = FARTHEST * max(height, width), []
    for numbers in _as_arrays(polygons):
        if not (np.abs(numbers) <= limit).all():  # NaN is not
            raise ValueError(f"a polygon with NaN, or far outside its image of {height}x{width} (height x width).")
        if numbers.size >= 6:
            read.append(numbers.tolist())
    return read


def _as_arrays(polygons: Any) -> list[np.ndarray]:
    """Polygons as float64 [x1, y1, x2, y2, ...] each. One polygon need not be in a list."""
    if not isinstance(polygons, (list, tuple)):
        raise TypeError(f"a segmentation of type {type(polygons).__name__}; expected polygons or run lengths.")
    if len(polygons) and isinstance(polygons[0], (int, float, str)):
        polygons = [polygons]
    arrays = []
    for polygon in polygons:
        try:
            numbers = np.asarray(polygon, dtype=np.float64).ravel()
        except (TypeError, ValueError):
            numbers = np.zeros(1)
        if numbers.size % 2:
            raise ValueError(f"the polygon {polygon!r:.60}; expected [x1, y1, x2, y2, ...] in pixels.")
        arrays.append(numbers)
    return arrays


def _read_rle(segmentation: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    try:
        size, counts = list(segmentation["size"]), segmentation["counts"]
        compressed = isinstance(counts, (str, bytes))
        lengths = run_lengths(counts) if compressed else [operator.index(count) for count in counts]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the run lengths {dict(segmentation)!r:.60}; expected 'size' and 'counts', text or a list of integers."
        ) from error
    if size != [height, width]:
        raise ValueError(f"run lengths of size {size} for an image of {height}x{width} (height x width).")
    if sum(lengths) != height * width or min(lengths) < 0:
        raise ValueError(f"run lengths that add up to {sum(lengths)}; expected {height}x{width}, none negative.")
    if compressed:
        return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}
    return coco_mask.frPyObjects({"size": size, "counts": lengths}, height, width)


def run_lengths(counts: str | bytes) -> list[int]:
    """Decodes COCO's compressed run lengths, to check them.

    A number is stored in groups of five bits, lowest first, as characters from "0". The sixth bit of a character says
    that another follows; the fifth bit of the last one is the sign. From the fourth number on, the difference to the
    last but one is stored (pycocotools, maskApi.c, `rleFrString`).

    Raises:
        ValueError: a character that run lengths cannot contain, or an end within a number.
    """
    lengths: list[int] = []
    number = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        code = character - 48
        if not 0 <= code < 64:
            raise ValueError("the run lengths contain invalid characters.")
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                number -= 1 << shift
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number, shift = 0, 0
    if shift:
        raise ValueError("the run lengths are cut off.")
    return lengths


__all__ = ["segmentation_to_box", "segmentation_to_mask", "segmentation_to_rle"]
