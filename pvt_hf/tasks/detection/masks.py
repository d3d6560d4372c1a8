"""
Masks of single objects, in the forms in which data sets have them: COCO's polygons and run lengths, or images.

pycocotools draws polygons and decodes run lengths. It believes what it is given, and reads memory that is not its own
where run lengths do not fit the image; everything is therefore checked here first.
"""

from __future__ import annotations

import json
from typing import Any

import datasets
import numpy as np

from ...data.samples import BadSample
from ...models.image_processing_coco import run_lengths


# Of a polygon's coordinates, in multiples of the image's longer side: pycocotools takes memory for the whole outline,
# outside the image as well.
FARTHEST = 10


def mask_to_rle(mask: Any, height: int, width: int) -> dict[str, Any]:
    """
    The mask of an object as COCO's compressed run lengths, `{"size": [height, width], "counts": str}`.

    Args:
        mask: a list of polygons, each [x0, y0, x1, y1 ...] in pixels; run lengths `{"size", "counts"}`, the counts a
            list of integers or compressed; JSON text of either; or an undecoded image (`{"bytes", "path"}`) with one
            value per pixel, of which 0 is not the object. Polygons of fewer than three points, which COCO has a few
            of, are left out.

    Raises:
        BadSample: none of these, of another size than the image, or broken.
        ImportError: pycocotools is missing.
    """
    mask_api = _mask_api()
    if _is_image(mask):
        rle = mask_api.encode(np.asfortranarray(mask_to_array(mask, height, width)))
    else:
        if isinstance(mask, str):
            mask = _parse_json(mask)
        if isinstance(mask, dict):
            rle = _check_rle(mask, height, width)
            if isinstance(rle["counts"], list):
                rle = mask_api.frPyObjects(rle, height, width)
        else:
            polygons = _check_polygons(mask, height, width)
            if not polygons:
                rle = mask_api.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
            else:
                rle = mask_api.merge(mask_api.frPyObjects(polygons, height, width))
    counts = rle["counts"]
    return {"size": [height, width], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def mask_to_array(mask: Any, height: int, width: int) -> np.ndarray:
    """The mask of an object as (height, width) uint8, 1 where it is. Arguments and errors of [`mask_to_rle`]."""
    if not _is_image(mask):
        return _mask_api().decode(mask_to_rle(mask, height, width))
    try:
        array = np.asarray(datasets.Image().decode_example(mask))
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data
        raise BadSample(f"an object's mask: {type(error).__name__}: {error}") from error
    if array.ndim != 2:
        raise BadSample("an object's mask is an image of colours; expected one value per pixel")
    _check_size(array.shape, height, width)
    return (array != 0).astype(np.uint8)


def _mask_api() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("Polygons and run lengths need pycocotools: `pip install pvt-hf[detection]`.") from error
    return mask


def _is_image(mask: Any) -> bool:
    return isinstance(mask, dict) and bool(mask.get("bytes") or mask.get("path"))


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadSample(f"an object's mask is a text that is no JSON: {text[:40]!r}") from error


def _check_size(size: Any, height: int, width: int) -> None:
    if list(size) != [height, width]:
        raise BadSample(
            f"an object's mask has {'x'.join(map(str, size))} pixels (height x width) and its image {height}x{width}"
        )


def _check_polygons(polygons: Any, height: int, width: int) -> list[list[float]]:
    """Those of at least three points."""
    if not isinstance(polygons, list):
        raise BadSample(f"an object's mask is {polygons!r:.40}; expected polygons, run lengths or an image")
    limit = FARTHEST * max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(_is_number, polygon)):
            raise BadSample(f"an object's polygon is {polygon!r:.60}; expected [x0, y0, x1, y1 ...] in pixels")
        if not all(abs(value) <= limit for value in polygon):  # NaN is not
            raise BadSample(f"an object's polygon lies far outside of its image of {height}x{width}, or nowhere")
    return [polygon for polygon in polygons if len(polygon) >= 6]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_rle(mask: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list | tuple) or not isinstance(counts, list | str | bytes):
        raise BadSample(f"an object's mask is {mask!r:.60}; expected run lengths with 'size' and 'counts'")
    _check_size(size, height, width)
    try:
        lengths = counts if isinstance(counts, list) else run_lengths(counts)
    except ValueError as error:
        raise BadSample(f"an object's mask: {error}") from error
    if not all(isinstance(length, int) and length >= 0 for length in lengths) or sum(lengths) != height * width:
        raise BadSample(
            f"the run lengths of an object's mask do not add up to the {height}x{width} pixels of the image"
        )
    return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
