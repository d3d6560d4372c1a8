"""
COCO annotations: reads and checks the objects of an image, chooses those that a detector learns from, and makes labels.

The rules are mmdetection's (`CocoDataset._parse_ann_info`, `LoadAnnotations`), with the deviations that `clean_objects`
lists.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from .image_processing_masks import segmentation_to_box, segmentation_to_mask


# Names that data sets give to an object's class
CATEGORY_FIELDS = ("category", "category_id", "label")
# Boxes with a side below this, in pixels of the original image and after clipping, are not learned from.
SMALLEST_SIDE = 1.0


@dataclass(frozen=True)
class Objects:
    """
    The n annotated objects of an image.

    Attributes:
        boxes_xywh: (n, 4) float64, left, top, width and height in pixels.
        class_labels: (n,) int64, the model's labels.
        areas: (n,) float64, in pixels, as annotated or else that of the box.
        is_crowd: (n,) bool, whether the object stands for an uncounted group.
        positions: (n,) int64, indices in the annotation, for messages.
        masks: n segmentations, undecoded; None for an object without.
    """

    boxes_xywh: np.ndarray
    class_labels: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    positions: np.ndarray
    masks: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.class_labels)

    def where(self, chosen: np.ndarray) -> "Objects":
        """The objects for which `chosen`, (n,) bool, is true."""
        return Objects(
            boxes_xywh=self.boxes_xywh[chosen],
            class_labels=self.class_labels[chosen],
            areas=self.areas[chosen],
            is_crowd=self.is_crowd[chosen],
            positions=self.positions[chosen],
            masks=tuple(mask for mask, keep in zip(self.masks, chosen) if keep),
        )


def read_objects(
    value: Any,
    labels: Mapping[Any, int] | None = None,
    masks: Any = None,
    box_of: Callable[[Any], list[float]] = segmentation_to_box,
) -> Objects:
    """Reads and checks all objects of an image, including crowds, empty boxes and boxes outside the image.

    Args:
        value: a list of dicts, one per object, or a dict of lists: `bbox` ([x, y, width, height] in pixels),
            `category_id` (or `category`, `label`), and optionally `area`, `iscrowd` and `segmentation`. None means no
            objects. An area that is None or NaN counts as missing, and so does a box that is None or empty: it is then
            computed from the segmentation.
        labels: the model's label of each category. None if categories are labels already, counted from 0.
        masks: one segmentation per object, instead of `segmentation`.
        box_of: computes the box of a segmentation.

    Raises:
        ValueError: fields of different lengths; a box that is not four finite numbers, or with a negative side; a
            category without a label; a negative or infinite area. The message names the object.
    """
    fields = _as_lists(value)
    name = next((name for name in CATEGORY_FIELDS if fields.get(name) is not None), CATEGORY_FIELDS[0])
    boxes = _column(fields, "bbox", len(_column(fields, name, 0)))
    categories, areas, crowds = (_column(fields, field, len(boxes)) for field in (name, "area", "iscrowd"))
    masks = _column(fields, "segmentation", len(boxes)) if masks is None else list(masks)
    lengths = {"bbox": len(boxes), name: len(categories), "area": len(areas), "iscrowd": len(crowds)}
    lengths["segmentation"] = len(masks)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the objects' fields have different lengths: {lengths}.")
    read: list[tuple[list[float], int, float]] = []
    for index, (box, category, area, mask) in enumerate(zip(boxes, categories, areas, masks)):
        try:
            has_box = box is not None and len(box) > 0
            box = _read_box(box if has_box or mask is None else box_of(mask))
            read.append((box, _read_label(category, labels), _read_area(area, box)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"object {index}: {error}") from error
    return Objects(
        boxes_xywh=np.array([box for box, _, _ in read], dtype=np.float64).reshape(-1, 4),
        class_labels=np.array([label for _, label, _ in read], dtype=np.int64),
        areas=np.array([area for _, _, area in read], dtype=np.float64),
        is_crowd=np.array([bool(float(crowd or 0)) for crowd in crowds], dtype=bool),
        positions=np.arange(len(read)),
        masks=tuple(masks),
    )


def clean_objects(objects: Objects, height: int, width: int) -> Objects:
    """The objects that a model learns from, in an image of height x width pixels:

    - crowds are dropped, because the box of a crowd is not the box of an object (evaluation keeps and ignores them);
    - boxes that extend beyond the image are clipped to it;
    - boxes with a side below one pixel after clipping are dropped, among them empty boxes and boxes outside the image.

    mmdetection measures the side before clipping, and so keeps slivers at the border that have nothing to learn from;
    it drops objects with an annotated area of 0, which some data sets write for an unknown one; and it drops images
    without objects (`filter_empty_gt`). Transformers' DETR keeps every box with an area.
    """
    corners = np.concatenate([objects.boxes_xywh[:, :2], objects.boxes_xywh[:, :2] + objects.boxes_xywh[:, 2:]], axis=1)
    corners = corners.clip(0, [width, height, width, height])
    sides = corners[:, 2:] - corners[:, :2]
    clipped = replace(objects, boxes_xywh=np.concatenate([corners[:, :2], sides], axis=1))
    # Clipping subtracts from large numbers: a side of exactly one pixel may come out slightly shorter.
    return clipped.where(~objects.is_crowd & (sides > SMALLEST_SIDE - 1e-4).all(axis=1))


def may_have_objects(value: Any) -> bool:
    """Whether `value`, as for `read_objects`, has anything to learn from; the size of the image is not needed."""
    try:
        fields = _as_lists(value)
        boxes = _column(fields, "bbox", 0)
        crowds = _column(fields, "iscrowd", len(boxes))
        return any(not crowd and min(box[2:]) >= SMALLEST_SIDE for box, crowd in zip(boxes, crowds))
    except Exception:  # a broken annotation is kept here, and reported where it is read
        return True


def _as_lists(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) for item in value):
        names = {"bbox"}.union(*value)
        return {name: [item.get(name) for item in value] for name in names}
    if not isinstance(value, Mapping):
        raise ValueError(f"the objects are {value!r:.60}; expected a list of dicts or a dict of lists.")
    return dict(value)


def _column(fields: dict[str, Any], name: str, count: int) -> list[Any]:
    values = fields.get(name)
    return [None] * count if values is None or len(values) == 0 else list(values)


def _read_box(box: Any) -> list[float]:
    try:
        numbers = [float(number) for number in box]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not np.isfinite(numbers).all() or min(numbers[2:]) < 0:
        raise ValueError(f"bbox {box!r:.80}; expected finite [x, y, width, height] in pixels, no negative sides.")
    return numbers


def _read_label(category: Any, labels: Mapping[Any, int] | None) -> int:
    if labels is not None:
        if not isinstance(category, (int, float, str)) or category not in labels:
            raise ValueError(f"category {category!r}, which is not among the classes.")
        return labels[category]
    try:
        label = operator.index(category)
    except TypeError:
        label = -1
    if label < 0:
        raise ValueError(f"category {category!r}; expected a class index from 0.")
    return label


def _read_area(area: Any, box: list[float]) -> float:
    area = float("nan" if area is None else area)
    if area < 0 or np.isinf(area):
        raise ValueError(f"area {area}; expected a finite number of pixels, not negative.")
    return box[2] * box[3] if np.isnan(area) else area


def decode_masks(
    objects: Objects, height: int, width: int, decode: Callable[[Any, int, int], np.ndarray] = segmentation_to_mask
) -> tuple[Objects, list[np.ndarray]]:
    """The objects whose masks have any pixel, and these masks, each (height, width) uint8.

    Objects with an empty mask, such as one of a degenerate polygon, are dropped, as in mmdetection 3.

    Raises:
        ValueError: an object without a mask, or a mask that cannot be decoded; the message names the object.
    """
    masks = []
    for position, mask in zip(objects.positions, objects.masks):
        try:
            masks.append(decode(mask, height, width))
        except (TypeError, ValueError) as error:
            raise ValueError(f"object {position}: {error}") from error
    has_pixels = np.array([mask.any() for mask in masks], dtype=bool)
    return objects.where(has_pixels), [mask for mask, keep in zip(masks, has_pixels) if keep]


def annotation_to_labels(
    annotation: Any,
    original: tuple[int, int],
    resized: tuple[int, int],
    padded: tuple[int, int],
    with_masks: bool,
) -> dict[str, np.ndarray]:
    """The COCO annotation of one image as labels in the format of Transformers' DETR.

    The objects are those that `clean_objects` keeps and, with masks, `decode_masks`.

    Args:
        annotation: `{"image_id": int, "annotations": ...}`, the objects as for `read_objects`, in pixels of the
            original image. Their categories are the labels.
        original, resized, padded: (height, width) of the image before and after resizing, and with padding.
        with_masks: whether to decode the `segmentation` of each object.

    Returns:
        class_labels (n,) int64; boxes (n, 4) float32, cxcywh relative to the image without padding; area (n,) float32,
        in pixels of the resized image; iscrowd (n,) int64, 0; image_id (1,), orig_size (2,) and size (2,) int64,
        (height, width) before and after resizing, without padding; with masks, masks (n, *padded) bool, by nearest
        neighbour.

    Raises:
        ValueError: missing keys, or the errors of `read_objects` and `decode_masks`.
        ImportError: masks without pycocotools.
    """
    if not isinstance(annotation, Mapping) or not {"image_id", "annotations"} <= annotation.keys():
        shown = sorted(annotation) if isinstance(annotation, Mapping) else type(annotation).__name__
        raise ValueError(f"got {shown}; expected a dict with 'image_id' and 'annotations'.")
    height, width = original
    objects = clean_objects(read_objects(annotation["annotations"]), height, width)
    masks: list[np.ndarray] = []
    if with_masks:
        objects, masks = decode_masks(objects, height, width)
    ratio = (resized[0] * resized[1]) / (height * width)
    corners, sides = objects.boxes_xywh[:, :2], objects.boxes_xywh[:, 2:]
    boxes_cxcywh = np.concatenate([corners + sides / 2, sides], axis=1) / [width, height, width, height]
    labels: dict[str, np.ndarray] = {
        "class_labels": objects.class_labels,
        "boxes": boxes_cxcywh.astype(np.float32),
        "area": (objects.areas * ratio).astype(np.float32),
        "iscrowd": np.zeros(len(objects), dtype=np.int64),
        "image_id": np.array([operator.index(annotation["image_id"])], dtype=np.int64),
        "orig_size": np.array(original, dtype=np.int64),
        "size": np.array(resized, dtype=np.int64),
    }
    if with_masks:
        labels["masks"] = np.zeros((len(objects), *padded), dtype=bool)
        for target, mask in zip(labels["masks"], masks):
            image = Image.fromarray(mask).resize(resized[::-1], Image.Resampling.NEAREST)
            target[: resized[0], : resized[1]] = np.array(image)
    return labels


__all__ = [
    "CATEGORY_FIELDS",
    "Objects",
    "annotation_to_labels",
    "clean_objects",
    "decode_masks",
    "may_have_objects",
    "read_objects",
]
