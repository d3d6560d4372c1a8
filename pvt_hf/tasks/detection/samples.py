"""
From an undecoded image and its objects to a sample for object detection or instance segmentation, or to the reason why
it is skipped; and from samples of different sizes to a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch.nn.functional import pad

from ...data.label_counts import LabelCounts
from ...data.samples import PROBLEM_COLUMN, BadSample, decoding, open_encoded, sample_id, to_rgb
from ...data.streams import Stream, require_class_names
from ...data.values import read_id, read_side
from ...engine.task import Counted
from ...models.image_processing_coco import Objects, clean_objects
from .objects import count_objects, decode_masks, encode_masks, read_objects
from .streams import inner_objects


# PIL RGB image, (n, 4) float32 boxes_xyxy in pixels and (n, height, width) uint8 masks or None, to the same as tensors
Transform = Callable[
    [Image.Image, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
]


def decode_as_annotated(
    value: dict[str, Any] | None, height: int | None = None, width: int | None = None, what: str = "image"
) -> Image.Image:
    """
    Decodes an image (`{"bytes": ..., "path": ...}`) to PIL RGB, in the orientation of its annotations.

    COCO's boxes refer to the stored pixels, whatever the EXIF orientation says. So the image is not turned, unlike in
    [`pvt_hf.data.samples.decode_rgb`] and in the processors, unless the annotated size is that of the upright image and
    not that of the stored one. (Orientations that keep the size, such as upside down, cannot be told apart and count as
    stored.)

    Args:
        height, width: annotated size in pixels; None if unknown.
        what: the image's name in messages.

    Raises:
        BadSample: missing, empty, truncated, not an image, or not of the annotated size.
    """
    with decoding(value, what):
        stored = open_encoded(value or {})
        stored.load()
        orientation = stored.getexif().get(ExifTags.Base.Orientation, 1)
    image, annotated = stored, (width or stored.width, height or stored.height)
    if annotated != stored.size and orientation != 1:
        image = ImageOps.exif_transpose(stored)
        annotated = (width or image.width, height or image.height)
    if annotated != image.size:
        raise BadSample(
            f"the image has {stored.height}x{stored.width} pixels (height x width), but {annotated[1]}x{annotated[0]} "
            "according to its annotations"
        )
    with decoding(value, what):
        return to_rgb(image)


class _DecodedSample:
    """The part that training and evaluation samples share: class names, decoding and counting."""

    counted = Counted("objects", needs_two_classes=False)

    def __init__(self, stream: Stream, class_names: tuple[str, ...] | None, with_masks: bool):
        self.stream, self.objects_column, self.with_masks = stream, stream.column("objects"), with_masks
        self.class_names = require_class_names(stream, class_names or stream.class_names)
        self.category_ids = _category_ids(stream, self.class_names)
        # A source may give the id of a category, also as text, or its name.
        self.labels: dict[Any, int] = {str(category): label for label, category in self.category_ids.items()}
        self.labels |= {name: label for label, name in enumerate(self.class_names)}
        self.labels |= {category: label for label, category in self.category_ids.items()}

    def decode(self, example: dict[str, Any]) -> tuple[Image.Image, Objects, dict[str, Any]]:
        """The RGB image, its objects as annotated, and the facts beside them. Raises [`BadSample`]."""
        objects, facts = self._objects(example)
        image = decode_as_annotated(
            example[self.stream.image_column], facts["height"], facts["width"], self.stream.title("image")
        )
        return image, objects, facts

    def _objects(self, example: dict[str, Any]) -> tuple[Objects, dict[str, Any]]:
        if example.get(PROBLEM_COLUMN):
            raise BadSample(example[PROBLEM_COLUMN])
        value = example[self.objects_column]
        masks = example[self.stream.columns["masks"]] if "masks" in self.stream.columns else None
        try:
            objects = read_objects(inner_objects(value), self.labels, masks)
        except BadSample as error:
            raise BadSample(f"{self.stream.title('objects')}: {error}") from error
        return objects, _read_facts(example, value)

    def count(self, example: dict[str, Any]) -> LabelCounts:
        """The objects of each class that a model can learn or find, without a look at their masks."""
        objects, _ = self._objects(example)
        height, width = image_size(self.stream, example)
        return count_objects(objects, clean_objects(objects, height, width), height, width)

    def count_clipped(self, example: dict[str, Any]) -> int:
        """Objects to learn from whose boxes extend beyond the image by a pixel or more, so that they are clipped."""
        objects, _ = self._objects(example)
        used = clean_objects(objects, *image_size(self.stream, example))
        annotated = objects.where(np.isin(objects.positions, used.positions)).boxes_xywh
        changed = np.abs(annotated - used.boxes_xywh).max(axis=1, initial=0)
        return int((changed >= 1).sum())


def _category_ids(stream: Stream, class_names: tuple[str, ...]) -> dict[int, int | str]:
    """The stream's category id for each of the model's labels; by name if the names differ."""
    own_names = stream.class_names or class_names
    own_ids = stream.category_ids or tuple(range(len(own_names)))
    if own_names == class_names:
        return dict(enumerate(own_ids))
    labels = {name: label for label, name in enumerate(class_names)}
    matched = {labels[name]: category for name, category in zip(own_names, own_ids) if name in labels}
    if not matched:
        raise ValueError(
            f"None of the classes of {stream.name} ({', '.join(own_names[:5])} ...) is among the "
            f"{len(class_names)} class_names ({', '.join(class_names[:5])} ...)."
        )
    return matched


def _facts(example: dict[str, Any], value: Any) -> dict[str, Any]:
    """Where `image_id`, `width` and `height` are: beside the objects in their column, or in columns of their own."""
    return value if inner_objects(value) is not value else example


def _read_facts(example: dict[str, Any], value: Any) -> dict[str, Any]:
    """`image_id` (int, str or None), `width` and `height` (None if unknown) of an image."""
    facts = _facts(example, value)
    image_id = facts.get("image_id")
    try:
        # Text stays text, because results name images as the source does.
        known = image_id is None or isinstance(image_id, str)
        image_id = image_id if known else read_id(image_id)
    except (TypeError, ValueError) as error:
        raise BadSample(f"image_id: {error}") from error
    return {"image_id": image_id, "width": read_side(facts.get("width")), "height": read_side(facts.get("height"))}


class DetectionSample(_DecodedSample):
    """
    Makes `{"pixel_values": (3, h, w) float, "labels": dict, "label_counts": LabelCounts}` from an example, to train on.
    The labels have the format of Transformers' DETR:

    - `class_labels`: (n,) int64;
    - `boxes`: (n, 4) float32, (centre x, centre y, width, height) relative to the image's own w and h, before padding;
    - `masks`: (n, h, w) uint8, 0 or 1, if wanted;
    - `orig_size`, `size`: (2,) int64, (height, width) of the image before and after the transform;
    - `image_id`: (1,) int64, if the source has such a number.

    The objects are those that [`pvt_hf.models.image_processing_coco.clean_objects`] keeps and, with masks,
    [`pvt_hf.models.image_processing_coco.decode_masks`].

    Args:
        stream: where the examples come from; has an "objects" column.
        transform: PIL RGB image, boxes_xyxy (n, 4) float32 in pixels and masks (n, H, W) uint8 or None, to the same
            with the image as a tensor, such as a [`pvt_hf.tasks.detection.transforms.DetectionTransform`].
        class_names: the model's labels, in order; default: the stream's. If both have names they are matched by name,
            and an object of a class that the model lacks makes its image unusable.
        with_masks: whether masks are wanted. An object without one then makes its image unusable.

    Attributes:
        class_names: the model's.
        category_ids: the source's category id for each of the model's labels.

    Raises:
        ValueError: the stream has no objects column, no class names are known, or none of them is the stream's.
    """

    def __init__(
        self,
        stream: Stream,
        transform: Transform,
        class_names: tuple[str, ...] | None = None,
        with_masks: bool = False,
    ):
        super().__init__(stream, class_names, with_masks)
        self.transform = transform

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        image, annotated, facts = self.decode(example)
        objects = clean_objects(annotated, image.height, image.width)
        masks = None
        if self.with_masks:
            objects, arrays = decode_masks(objects, image.height, image.width)
            masks = torch.zeros((len(objects), image.height, image.width), dtype=torch.uint8)
            for target, array in zip(masks, arrays):
                target.copy_(torch.from_numpy(array))
        corners = objects.boxes_xywh.copy()
        corners[:, 2:] += corners[:, :2]
        pixel_values, boxes_xyxy, masks = self.transform(image, torch.from_numpy(corners).float(), masks)
        height, width = pixel_values.shape[-2:]
        first, last = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
        boxes_cxcywh = torch.cat([(first + last) / 2, last - first], dim=1) / torch.tensor([width, height] * 2)
        labels = {
            "class_labels": torch.from_numpy(objects.class_labels),
            "boxes": boxes_cxcywh,
            "orig_size": torch.tensor([image.height, image.width]),
            "size": torch.tensor([height, width]),
        }
        if masks is not None:
            labels["masks"] = masks
        if isinstance(facts["image_id"], int):
            labels["image_id"] = torch.tensor([facts["image_id"]])
        counts = count_objects(annotated, objects, image.height, image.width)
        return {"pixel_values": pixel_values, "labels": labels, "label_counts": counts}


class DetectionEvaluationSample(_DecodedSample):
    """
    Makes `{"pixel_values": (3, h, w), "target": dict, "orig_size": (height, width), "label_counts": LabelCounts}` from
    an example, to evaluate on.

    The target is the image's ground truth in COCO's format, with every object as annotated, including crowds and boxes
    outside the image, so that the figures are those of the annotation file. It has `image_id` (the source's, or else
    the example's name) and `annotations`, a list of dicts with `bbox` ([x, y, width, height] in pixels of the image
    before processing), `category_id` (the model's label; `category_ids` has the source's), `area` (as annotated, or
    else that of the box), `iscrowd` (0 or 1), and with masks `segmentation` (compressed RLE, the counts as str).

    Args:
        transform: PIL RGB image to a tensor (3, h, w) without padding, such as a
            [`pvt_hf.data.samples.ProcessorTransform`].
        stream, class_names, with_masks, attributes: as for [`DetectionSample`], with the same errors.
    """

    def __init__(
        self,
        stream: Stream,
        transform: Callable[[Image.Image], torch.Tensor],
        class_names: tuple[str, ...] | None = None,
        with_masks: bool = False,
    ):
        super().__init__(stream, class_names, with_masks)
        self.transform = transform

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        image, objects, facts = self.decode(example)
        image_id = facts["image_id"]
        if image_id is None:
            image_id = sample_id(example, self.stream.image_column)
        usable = clean_objects(objects, image.height, image.width)
        return {
            "pixel_values": self.transform(image),
            "target": {"image_id": image_id, "annotations": self._annotations(objects, image.height, image.width)},
            "orig_size": (image.height, image.width),
            "label_counts": count_objects(objects, usable, image.height, image.width),
        }

    def _annotations(self, objects: Objects, height: int, width: int) -> list[dict[str, Any]]:
        annotations = []
        for box, label, area, is_crowd in zip(
            objects.boxes_xywh.tolist(), objects.class_labels.tolist(), objects.areas.tolist(), objects.is_crowd
        ):
            annotations.append({"bbox": box, "category_id": label, "area": area, "iscrowd": int(is_crowd)})
        if self.with_masks:
            for annotation, rle in zip(annotations, encode_masks(objects, height, width)):
                annotation["segmentation"] = rle
        return annotations


def collate_detection(samples: list[dict[str, Any]], size_divisor: int = 32) -> dict[str, Any]:
    """
    Makes a batch of samples of [`DetectionSample`] or [`DetectionEvaluationSample`].

    Returns:
        `pixel_values` (batch, 3, H, W), where H and W are the largest height and width, rounded up to multiples of
        `size_divisor`, with zeros at the right and bottom; `pixel_mask` (batch, H, W) int64, 1 for the image and 0 for
        padding; everything else as a list with one entry per sample, with `masks` of labels padded to (n, H, W).
    """
    sizes = [sample["pixel_values"].shape[-2:] for sample in samples]
    height, width = (-(-max(sides) // size_divisor) * size_divisor for sides in zip(*sizes))
    # Images come first, because Accelerate and Trainer count samples by the first tensor of a batch.
    batch: dict[str, Any] = {
        "pixel_values": samples[0]["pixel_values"].new_zeros(len(samples), 3, height, width),
        "pixel_mask": torch.zeros(len(samples), height, width, dtype=torch.int64),
        **{key: [sample[key] for sample in samples] for key in samples[0] if key != "pixel_values"},
    }
    for index, (sample, (rows, columns)) in enumerate(zip(samples, sizes)):
        batch["pixel_values"][index, :, :rows, :columns] = sample["pixel_values"]
        batch["pixel_mask"][index, :rows, :columns] = 1
        masks = sample.get("labels", {}).get("masks")
        if masks is not None:
            padded = pad(masks, (0, width - columns, 0, height - rows))
            batch["labels"][index] = {**sample["labels"], "masks": padded}
    return batch


def image_size(stream: Stream, example: dict[str, Any]) -> tuple[int, int]:
    """
    (height, width) of an image, as annotated or else from its file. Decodes nothing. Raises a [`BadSample`] if neither
    can be read.
    """
    facts = _facts(example, example[stream.columns["objects"]])
    height, width = read_side(facts.get("height")), read_side(facts.get("width"))
    if height and width:
        return height, width
    value = example[stream.image_column]
    with decoding(value, stream.title("image")):
        image = open_encoded(value or {})
        return image.height, image.width


def aspect_group(stream: Stream, example: dict[str, Any]) -> int:
    """1 for an image that is wider than high, otherwise 0, also for unusable ones."""
    try:
        height, width = image_size(stream, example)
    except BadSample:  # counted where it is decoded
        return 0
    return int(width > height)
