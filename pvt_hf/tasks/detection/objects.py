"""The objects of an image: checked as they are read, and cleaned for training by rules that stand in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.samples import BadSample


# What a data set calls the class of an object
CATEGORY_FIELDS = ("category", "category_id", "label")
# Boxes narrower or lower than this, in pixels, after clipping, are no boxes to learn from.
SMALLEST_SIDE = 1.0


@dataclass(frozen=True)
class Objects:
    """
    The n objects of an image, whose size is (height, width).

    Attributes:
        boxes_xywh: (n, 4) float64, left, top, width and height in pixels.
        class_labels: (n,) int64, the model's labels.
        areas: (n,) float64, pixels as annotated; NaN where nothing is.
        is_crowd: (n,) bool, whether it stands for a group of uncounted objects.
        masks: n values for [`pvt_hf.tasks.detection.masks.mask_to_array`], None where an object has no mask.
    """

    boxes_xywh: np.ndarray
    class_labels: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    masks: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.class_labels)

    def where(self, chosen: np.ndarray) -> Objects:
        """Those for which `chosen`, (n,) bool, is true."""
        masks = tuple(mask for mask, keep in zip(self.masks, chosen) if keep)
        return Objects(
            self.boxes_xywh[chosen], self.class_labels[chosen], self.areas[chosen], self.is_crowd[chosen], masks
        )


def read_objects(value: Any, labels: Mapping[Any, int], masks: Any = None) -> Objects:
    """
    The objects as they are annotated: crowds, empty boxes and boxes outside the image among them.

    Args:
        value: a dict of lists, one entry per object, or a list of dicts: `bbox` ([x, y, width, height] in pixels),
            `category` (or `category_id`, `label`), and where there is any `area`, `iscrowd` and `segmentation`. None
            has no objects.
        labels: the model's label of each category.
        masks: one per object, instead of `segmentation`.

    Raises:
        BadSample: lists of different lengths, a box that is not four finite numbers or whose width or height is
            negative, a category that is not among `labels`, an area that is not a number.
    """
    fields = _as_lists(value)
    boxes = fields.get("bbox") or []
    names = [name for name in CATEGORY_FIELDS if fields.get(name) is not None]
    categories = fields[names[0]] if names else []
    count = len(boxes)
    areas, crowds = fields.get("area") or [None] * count, fields.get("iscrowd") or [0] * count
    masks = (fields.get("segmentation") or [None] * count) if masks is None else masks
    lengths = {"bbox": count, "category": len(categories), "area": len(areas), "iscrowd": len(crowds)}
    lengths["masks"] = len(masks)
    if len(set(lengths.values())) > 1:
        raise BadSample(f"the objects' fields have different lengths: {lengths}")
    found = Objects(
        boxes_xywh=np.array([_read_box(box, index) for index, box in enumerate(boxes)], np.float64).reshape(-1, 4),
        class_labels=np.array([_read_label(item, labels, i) for i, item in enumerate(categories)], dtype=np.int64),
        areas=_as_floats(areas, "areas"),
        is_crowd=np.array([bool(crowd) for crowd in crowds], dtype=bool),
        masks=tuple(masks),
    )
    return found


def clean_objects(objects: Objects, height: int, width: int) -> Objects:
    """
    The objects of an image of height x width pixels that a model learns from:

    - crowds are left out, because a crowd's box is not the box of an object (evaluation keeps and ignores them);
    - boxes partly outside the image are clipped to it;
    - boxes that are then less than a pixel wide or high are left out: those without area, and those that lie outside.

    An image may be left without objects: all of it is background then. mmdetection does the same, but leaves images
    without objects out (`filter_empty_gt`), tests sides before clipping, and drops objects with an annotated area of 0.
    """
    corners = np.concatenate([objects.boxes_xywh[:, :2], objects.boxes_xywh[:, :2] + objects.boxes_xywh[:, 2:]], axis=1)
    corners = corners.clip(0, [width, height, width, height])
    sides = corners[:, 2:] - corners[:, :2]
    clipped = Objects(
        boxes_xywh=np.concatenate([corners[:, :2], sides], axis=1),
        class_labels=objects.class_labels,
        areas=objects.areas,
        is_crowd=objects.is_crowd,
        masks=objects.masks,
    )
    # Clipping subtracts from large numbers: a side of exactly one pixel may come out a little shorter.
    return clipped.where(~objects.is_crowd & (sides > SMALLEST_SIDE - 1e-4).all(axis=1))


def may_have_objects(value: Any) -> bool:
    """Whether `value`, as for [`read_objects`], has anything to learn from, the image's size being unknown."""
    try:
        fields = _as_lists(value)
        boxes = fields.get("bbox") or []
        crowds = fields.get("iscrowd") or [0] * len(boxes)
        return any(not crowd and min(box[2:]) >= SMALLEST_SIDE for box, crowd in zip(boxes, crowds))
    except Exception:  # something impossible: it comes, and is counted, where it is read
        return True


def _as_lists(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        names = {name for item in value for name in item}
        return {name: [item.get(name) for item in value] for name in names}
    if not isinstance(value, dict):
        raise BadSample(f"the objects are {value!r:.60}; expected a dict of lists or a list of dicts")
    return value


def _read_box(box: Any, index: int) -> list[float]:
    try:
        numbers = [float(number) for number in box]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not np.isfinite(numbers).all() or min(numbers[2:]) < 0:
        raise BadSample(
            f"object {index} has the box {box!r:.80}; expected [x, y, width, height] in pixels, width and height not "
            "negative"
        )
    return numbers


def _read_label(category: Any, labels: Mapping[Any, int], index: int) -> int:
    if not isinstance(category, int | str) or category not in labels:
        raise BadSample(f"object {index} has the category {category!r}, which is not among the classes")
    return labels[category]


def _as_floats(values: list[Any], name: str) -> np.ndarray:
    try:
        return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadSample(f"the objects' {name} are no numbers: {error}") from error
