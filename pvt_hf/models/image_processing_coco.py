"""COCO annotations as a detector's labels, and COCO segmentations (polygons, RLE) as masks."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image


try:
    from pycocotools import mask as coco_mask
except ImportError:
    coco_mask = None


def run_lengths(counts: str | bytes) -> list[int]:
    """The numbers of COCO's compressed run lengths, to check them: pycocotools reads beyond its memory in broken ones.

    The form is little-endian groups of five bits in characters from "0" on, the sixth bit of which says that the number
    goes on, and the fifth of the last is its sign; from the fourth number on it is a difference to the last but one.

    Raises:
        ValueError: characters that no run lengths have, or an end within a number.
    """
    lengths: list[int] = []
    number = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        code = character - 48
        if not 0 <= code < 64:
            raise ValueError("the run lengths have characters that no run lengths have")
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                number -= 1 << shift
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number, shift = 0, 0
    if shift:
        raise ValueError("the run lengths are cut off")
    return lengths


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO segmentation as a (height, width) bool mask.

    Args:
        segmentation: a list of polygons `[x1, y1, x2, y2, ...]` in pixels, whose union is meant, or run-length encoding
            `{"size": [height, width], "counts": ...}` with compressed counts (str, bytes) or a list of them.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: no polygon, one of fewer than three points or with NaN, or RLE of another size.
        TypeError: neither polygons nor RLE.
    """
    if coco_mask is None:
        raise ImportError("COCO segmentations need pycocotools: `pip install pycocotools`.")
    if isinstance(segmentation, Mapping) and {"size", "counts"} <= segmentation.keys():
        size, counts = list(segmentation["size"]), segmentation["counts"]
        if size != [height, width]:
            raise ValueError(f"RLE of size {size} for an image of {height}x{width} (height x width).")
        rle, is_compressed = {"size": size, "counts": counts}, isinstance(counts, (str, bytes))
        lengths = run_lengths(counts) if is_compressed else [int(count) for count in counts]
        if sum(lengths) != height * width or min(lengths) < 0:
            raise ValueError(f"RLE counts that add up to {sum(lengths)}; expected {height}x{width}, none negative.")
        if not is_compressed:
            rle = coco_mask.frPyObjects({"size": size, "counts": lengths}, height, width)
        return coco_mask.decode(rle).astype(bool)
    if not isinstance(segmentation, (list, tuple)):
        raise TypeError(f"a segmentation of type {type(segmentation).__name__}; expected polygons or RLE.")
    polygons = [np.asarray(polygon, dtype=np.float64).ravel() for polygon in segmentation]
    if not polygons or not all(p.size >= 6 and p.size % 2 == 0 and np.isfinite(p).all() for p in polygons):
        raise ValueError(
            f"a segmentation of polygons with {[p.size for p in polygons]} numbers; expected at least one polygon, "
            "each of three or more points [x1, y1, x2, y2, ...], all finite."
        )
    encoded = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(encoded)).astype(bool)


def _check_object(item: Any) -> tuple[list[float], int, float, int]:
    """The bbox (x, y, width, height), category, area and crowd flag of one annotation."""
    if not isinstance(item, Mapping) or not {"bbox", "category_id"} <= item.keys():
        shown = sorted(item) if isinstance(item, Mapping) else type(item).__name__
        raise ValueError(f"got {shown}; expected a dict with 'bbox' and 'category_id'.")
    box = np.asarray(item["bbox"], dtype=np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or box[2:].min() < 0:
        raise ValueError(f"bbox {box.tolist()}; expected finite [x, y, width, height] in pixels, no negative sides.")
    category = operator.index(item["category_id"])
    if category < 0:
        raise ValueError(f"category_id {category}; expected a class index from 0.")
    area = item.get("area")
    area = float(box[2] * box[3] if area is None else area)
    if not (np.isfinite(area) and area >= 0):
        raise ValueError(f"area {area}; expected a finite number of pixels, not negative.")
    return box.tolist(), category, area, int(item.get("iscrowd") or 0)


def annotation_to_labels(
    annotation: Any,
    original: tuple[int, int],
    resized: tuple[int, int],
    padded: tuple[int, int],
    with_masks: bool,
) -> dict[str, np.ndarray]:
    """One image's COCO annotation as labels in the format of Transformers' DETR.

    Boxes are clipped to the image. Crowds and boxes without area (after clipping) are left out.

    Args:
        annotation: `{"image_id": int, "annotations": [{"bbox": [x, y, width, height], "category_id": int, "area",
            "iscrowd", "segmentation"}, ...]}` in pixels of the original image. Without `area` it is that of the box.
        original, resized, padded: (height, width) of the image before and after resizing, and with padding.
        with_masks: whether to decode the `segmentation` of every object.

    Returns:
        class_labels (n,) int64; boxes (n, 4) float32, cxcywh relative to the image without padding; area (n,) float32,
        in pixels of the resized image; iscrowd (n,) int64; image_id (1,), orig_size (2,) and size (2,) int64, (height,
        width) before and after resizing, without padding; with masks, masks (n, *padded) bool, by nearest neighbour.

    Raises:
        ValueError: missing keys, a wrong type, NaN or negative sides; the message names the object.
    """
    if not isinstance(annotation, Mapping) or not {"image_id", "annotations"} <= annotation.keys():
        shown = sorted(annotation) if isinstance(annotation, Mapping) else type(annotation).__name__
        raise ValueError(f"got {shown}; expected a dict with 'image_id' and 'annotations'.")
    height, width = original
    ratio = (resized[0] * resized[1]) / (height * width)
    scale = np.array([width, height, width, height], dtype=np.float64)
    classes, boxes, areas, masks = [], [], [], []
    for index, item in enumerate(annotation["annotations"]):
        try:
            (x, y, box_width, box_height), category, area, is_crowd = _check_object(item)
            x0, y0, x1, y1 = np.clip([x, y, x + box_width, y + box_height], 0, scale)
            if is_crowd or x1 <= x0 or y1 <= y0:
                continue
            if with_masks:
                if item.get("segmentation") is None:
                    raise ValueError("no 'segmentation', which return_segmentation_masks=True needs.")
                image = Image.fromarray(segmentation_to_mask(item["segmentation"], height, width))
                masks.append(np.array(image.resize(resized[::-1], Image.Resampling.NEAREST)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"object {index}: {error}") from error
        classes.append(category)
        boxes.append([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
        areas.append(area * ratio)

    labels: dict[str, np.ndarray] = {
        "class_labels": np.array(classes, dtype=np.int64),
        "boxes": (np.array(boxes, dtype=np.float64).reshape(-1, 4) / scale).astype(np.float32),
        "area": np.array(areas, dtype=np.float32),
        "iscrowd": np.zeros(len(classes), dtype=np.int64),
        "image_id": np.array([operator.index(annotation["image_id"])], dtype=np.int64),
        "orig_size": np.array(original, dtype=np.int64),
        "size": np.array(resized, dtype=np.int64),
    }
    if with_masks:
        labels["masks"] = np.zeros((len(classes), *padded), dtype=bool)
        for target, mask in zip(labels["masks"], masks):
            target[: resized[0], : resized[1]] = mask
    return labels


__all__ = ["annotation_to_labels", "run_lengths", "segmentation_to_mask"]
