"""
The objects and masks of a data set's images, by the rules of `models/image_processing_coco.py`. What the rules refuse
makes an image unusable, and raises [`BadSample`] here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from ...data.label_counts import LabelCounts
from ...data.samples import BadSample, open_encoded
from ...models import image_processing_coco as coco
from ...models.image_processing_input import decode_image
from ...models.image_processing_masks import segmentation_to_box, segmentation_to_mask, segmentation_to_rle


@contextmanager
def _bad_sample(prefix: str = "") -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise BadSample(f"{prefix}{error}") from error


def read_objects(value: Any, labels: Mapping[Any, int], masks: Any = None) -> coco.Objects:
    """The objects of an image as annotated; arguments as in `image_processing_coco`, whose errors become BadSample."""
    with _bad_sample():
        return coco.read_objects(value, labels, masks, mask_to_box)


def decode_masks(objects: coco.Objects, height: int, width: int) -> tuple[coco.Objects, list[np.ndarray]]:
    """
    The objects whose masks have any pixel, and these masks, each (height, width) uint8 of 0 and 1.

    Raises:
        BadSample: an object without a mask, or the errors of [`mask_to_array`].
    """
    with _bad_sample():
        return coco.decode_masks(objects, height, width, mask_to_array)


def count_objects(annotated: coco.Objects, used: coco.Objects, height: int, width: int) -> LabelCounts:
    """
    The objects of each class that are used, and why the others of an image of height x width pixels are not. In an
    evaluation the latter are what a model cannot find, or what is ignored.
    """
    unused = annotated.where(~np.isin(annotated.positions, used.positions))
    counts = LabelCounts(1)
    for label in used.class_labels.tolist():
        counts.add(LabelCounts(per_class={label: 1}))
    for box, is_crowd in zip(unused.boxes_xywh.tolist(), unused.is_crowd):
        counts.add(LabelCounts(unused={_why_unused(box, bool(is_crowd), height, width): 1}))
    return counts


def _why_unused(box_xywh: list[float], is_crowd: bool, height: int, width: int) -> str:
    left, top, box_width, box_height = box_xywh
    if is_crowd:
        return "crowds (iscrowd is 1)"
    if not box_width or not box_height:
        return "boxes without area"
    if min(left, top) >= 0 and max(left + box_width, top + box_height) <= 1:
        return "boxes with all numbers between 0 and 1, which have to be pixels: [x, y, width, height]"
    if left >= width or top >= height or left + box_width <= 0 or top + box_height <= 0:
        return "boxes outside their image"
    if box_width < coco.SMALLEST_SIDE or box_height < coco.SMALLEST_SIDE:
        return "boxes with a side below a pixel"
    sides = [
        min(start + side, end) - max(start, 0)
        for start, side, end in ((left, box_width, width), (top, box_height, height))
    ]
    return "boxes with less than a pixel inside their image" if min(sides) < coco.SMALLEST_SIDE else "empty masks"


def encode_masks(objects: coco.Objects, height: int, width: int) -> list[dict[str, Any]]:
    """The masks of all objects as COCO's compressed run lengths, the counts as str; errors of [`decode_masks`]."""
    rles = []
    for position, mask in zip(objects.positions, objects.masks):
        with _bad_sample(f"object {position}: "):
            rles.append(mask_to_rle(mask, height, width))
    return rles


def mask_to_array(mask: Any, height: int, width: int) -> np.ndarray:
    """
    The mask of an object as (height, width) uint8, 1 where the object is.

    Args:
        mask: COCO polygons or run lengths, as for `segmentation_to_rle`; the same as JSON text; or an undecoded image
            (`{"bytes", "path"}`) with one value per pixel, 0 outside the object.

    Raises:
        ValueError, TypeError: none of these, of another size than the image, or broken.
        ImportError: polygons or run lengths without pycocotools.
    """
    if not _is_image(mask):
        return segmentation_to_mask(_parse_needed(mask), height, width)
    array = np.asarray(_decode(mask))
    if array.ndim != 2:
        raise ValueError("a mask that is a colour image; expected one value per pixel.")
    if array.shape != (height, width):
        raise ValueError(f"a mask of {array.shape[0]}x{array.shape[1]} for an image of {height}x{width}.")
    return (array != 0).astype(np.uint8)


def mask_to_rle(mask: Any, height: int, width: int) -> dict[str, Any]:
    """The mask of an object as `{"size": [height, width], "counts": str}`; arguments and errors of `mask_to_array`."""
    if _is_image(mask):
        from pycocotools import mask as coco_mask

        rle = coco_mask.encode(np.asfortranarray(mask_to_array(mask, height, width)))
    else:
        rle = segmentation_to_rle(_parse_needed(mask), height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def mask_to_box(mask: Any) -> list[float]:
    """The box [x, y, width, height] around a mask, in pixels; argument and errors of `mask_to_array`, or no mask."""
    if not _is_image(mask):
        return segmentation_to_box(_parse(mask))
    left, top, right, bottom = _decode(mask).getbbox() or (0, 0, 0, 0)
    return [left, top, right - left, bottom - top]


def _decode(mask: dict[str, Any]) -> Image.Image:
    try:
        return decode_image(open_encoded(mask), upright=True)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data
        raise ValueError(f"a mask that is not an image ({type(error).__name__}: {error})") from error


def _parse_needed(mask: Any) -> Any:
    parsed = _parse(mask)
    if parsed is None:
        raise ValueError("no 'segmentation', which masks need (--no_masks takes boxes alone).")
    return parsed


def _is_image(mask: Any) -> bool:
    return isinstance(mask, dict) and bool(mask.get("bytes") or mask.get("path"))


def _parse(mask: Any) -> Any:
    if not isinstance(mask, str):
        return mask
    try:
        return json.loads(mask)
    except ValueError as error:
        raise ValueError(f"a mask that is text but not JSON: {mask[:40]!r}") from error
