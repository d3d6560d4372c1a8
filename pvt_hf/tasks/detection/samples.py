"""
From an undecoded image and its objects to a sample for object detection or instance segmentation, or to a reason why it
is skipped; and from samples of different sizes to a batch.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import fsspec
import torch
from PIL import ExifTags, Image, ImageOps
from torch.nn.functional import pad

from ...data.samples import BadSample, sample_id, to_rgb
from ...data.streams import Stream
from ...models.image_processing_coco import Objects, clean_objects
from .objects import decode_masks, encode_masks, read_objects
from .streams import inner_objects


# PIL RGB image, (n, 4) float32 boxes_xyxy in pixels and (n, height, width) uint8 masks or None, to the same as tensors
Transform = Callable[
    [Image.Image, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
]


def decode_as_annotated(
    value: dict[str, Any] | None, height: int | None = None, width: int | None = None
) -> Image.Image:
    """
    An undecoded image (`{"bytes": ..., "path": ...}`) as PIL RGB, turned as its annotations mean it.

    COCO's boxes refer to the pixels as they are stored, whatever the EXIF orientation says, and so they are left here,
    unlike in [`pvt_hf.data.samples.decode_rgb`] and the processors. Only where the annotated size is that of the
    upright image and not that of the stored one is the image turned. (Orientations that keep the size, upside down say,
    cannot be told apart and count as stored.)

    Args:
        height, width: in pixels, as annotated; None if that is not known.

    Raises:
        BadSample: missing, empty, truncated, not an image, or of another size than annotated.
    """
    if not value or (not value.get("bytes") and not value.get("path")):
        raise BadSample("the image is missing or empty")
    try:
        stored: Image.Image = Image.open(_open(value))
        stored.load()
        orientation = stored.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data
        raise BadSample(f"{type(error).__name__}: {error}") from error
    image, annotated = stored, (width or stored.width, height or stored.height)
    if annotated != stored.size and orientation != 1:
        image = ImageOps.exif_transpose(stored)
        annotated = (width or image.width, height or image.height)
    if annotated != image.size:
        raise BadSample(
            f"the image has {stored.height}x{stored.width} pixels (height x width), but {annotated[1]}x{annotated[0]} "
            "according to its annotations"
        )
    try:
        return to_rgb(image)
    except Exception as error:
        raise BadSample(f"{type(error).__name__}: {error}") from error


def _open(value: dict[str, Any]) -> Any:
    if value.get("bytes"):
        return io.BytesIO(value["bytes"])
    if os.path.exists(value["path"]):
        return value["path"]
    with fsspec.open(value["path"], "rb") as file:  # on the Hub, say
        return io.BytesIO(file.read())


class _DecodedSample:
    """What training and evaluation samples share: class names, and decoding with its checks."""

    def __init__(self, stream: Stream, class_names: tuple[str, ...] | None, with_masks: bool):
        if stream.objects_column is None:
            raise ValueError(f"{stream.name} has no column of objects: open it with open_detection_stream.")
        self.class_names = tuple(class_names or stream.class_names or ())
        if not self.class_names:
            raise ValueError(
                f"The labels of {stream.name} have no names: give class_names, in the order of the labels."
            )
        self.stream, self.objects_column, self.with_masks = stream, stream.objects_column, with_masks
        own_names = stream.class_names or self.class_names
        own_ids = stream.category_ids or tuple(range(len(own_names)))
        if own_names == self.class_names:
            pairs = list(enumerate(own_ids))
        else:
            by_name = {name: label for label, name in enumerate(self.class_names)}
            pairs = [(by_name[name], own) for name, own in zip(own_names, own_ids) if name in by_name]
            if not pairs:
                raise ValueError(
                    f"None of the classes of {stream.name} ({', '.join(own_names[:5])} ...) is among the "
                    f"{len(self.class_names)} class_names ({', '.join(self.class_names[:5])} ...)."
                )
        self.category_ids = {label: own for label, own in pairs}
        names = {name: label for label, name in enumerate(self.class_names)}
        self.labels = names | {own: label for label, own in pairs}  # a source may also say the name of a class

    def decode(self, example: dict[str, Any]) -> tuple[Image.Image, Objects, dict[str, Any]]:
        """The RGB image, its objects as annotated, and the facts beside them. Raises [`BadSample`]."""
        value = example[self.objects_column]
        objects = inner_objects(value)
        facts = value if objects is not value else example
        masks = self.stream.object_masks_column
        found = read_objects(objects, self.labels, example[masks] if masks else None)
        image = decode_as_annotated(example[self.stream.image_column], facts.get("height"), facts.get("width"))
        return image, found, facts


class DetectionSample(_DecodedSample):
    """
    Makes `{"pixel_values": (3, h, w) float, "labels": dict}` of an example, to train on. The labels are in the format
    of Transformers' DETR:

    - `class_labels`: (n,) int64;
    - `boxes`: (n, 4) float32, (centre x, centre y, width, height) in shares of the image's own w and h, before padding;
    - `masks`: (n, h, w) uint8, 0 or 1, if asked for;
    - `orig_size`, `size`: (2,) int64, (height, width) of the image before and after the transform;
    - `image_id`: (1,) int64, if the source has such a number.

    The objects are those that [`pvt_hf.models.image_processing_coco.clean_objects`] keeps and, with masks,
    [`pvt_hf.models.image_processing_coco.decode_masks`].

    Args:
        stream: where the examples come from; has an `objects_column`.
        transform: PIL RGB image, boxes_xyxy (n, 4) float32 in pixels and masks (n, H, W) uint8 or None, to the same
            with the image as a tensor; for example a [`pvt_hf.tasks.detection.transforms.DetectionTransform`].
        class_names: the model's labels, in order; defaults to the stream's. If both have names they are matched by
            name, and an object of a class that the model lacks makes its image unusable.
        with_masks: whether masks are needed; an image with an object that has none is unusable then.

    Attributes:
        class_names: the model's.
        category_ids: dict, what the source calls a label of the model: COCO's category id.

    Raises:
        ValueError: the stream has no objects, no class names are known, or none is both the stream's and the model's.
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
        image, objects, facts = self.decode(example)
        objects = clean_objects(objects, image.height, image.width)
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
        if isinstance(facts.get("image_id"), int):
            labels["image_id"] = torch.tensor([facts["image_id"]])
        return {"pixel_values": pixel_values, "labels": labels}


class DetectionEvaluationSample(_DecodedSample):
    """
    Makes `{"pixel_values": (3, h, w), "target": dict, "orig_size": (height, width)}` of an example, to evaluate on.

    The target is the image's truth in COCO's terms, with every object as it is annotated, crowds and boxes outside the
    image among them, so that the figures are those of the annotation file: `image_id` (the source's, or else the
    example's name) and `annotations`, a list of dicts with `bbox` ([x, y, width, height] in the pixels of the image
    before processing), `category_id` (the model's label, without gaps; `category_ids` has what the source calls it),
    `area` (as annotated, or else that of the box), `iscrowd` (0 or 1), and with masks
    `segmentation` (COCO's compressed run lengths, the counts as str).

    Args:
        process: PIL RGB image to a tensor (3, h, w), without padding: an image processor, called by
            [`pvt_hf.tasks.detection.train.ProcessImage`].
        stream, class_names, with_masks, attributes: as for [`DetectionSample`], with the same errors.
    """

    def __init__(
        self,
        stream: Stream,
        process: Callable[[Image.Image], torch.Tensor],
        class_names: tuple[str, ...] | None = None,
        with_masks: bool = False,
    ):
        super().__init__(stream, class_names, with_masks)
        self.process = process

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        image, objects, facts = self.decode(example)
        rles = None
        if self.with_masks:
            rles = encode_masks(objects, image.height, image.width)
        annotations = []
        for index in range(len(objects)):
            x, y, width, height = objects.boxes_xywh[index].tolist()
            annotation = {
                "bbox": [x, y, width, height],
                "category_id": int(objects.class_labels[index]),
                "area": float(objects.areas[index]),
                "iscrowd": int(objects.is_crowd[index]),
            }
            if rles is not None:
                annotation["segmentation"] = rles[index]
            annotations.append(annotation)
        image_id = facts.get("image_id")
        if not isinstance(image_id, int | str):
            image_id = sample_id(example, self.stream.image_column)
        return {
            "pixel_values": self.process(image),
            "target": {"image_id": image_id, "annotations": annotations},
            "orig_size": (image.height, image.width),
        }


def collate_detection(samples: list[dict[str, Any]], size_divisor: int = 32) -> dict[str, Any]:
    """
    Samples of [`DetectionSample`] or [`DetectionEvaluationSample`] to a batch.

    Returns:
        `pixel_values` (batch, 3, H, W), with H and W the greatest height and width, rounded up to multiples of
        `size_divisor`, and zeros at the right and below; `pixel_mask` (batch, H, W) int64, 1 where there is image and 0
        where there is padding; everything else as a list with one entry per sample, the `masks` of labels padded to
        (n, H, W) as well.
    """
    sizes = [sample["pixel_values"].shape[-2:] for sample in samples]
    height, width = (-(-max(sides) // size_divisor) * size_divisor for sides in zip(*sizes))
    # Images first: Accelerate and Trainer take the length of a batch's first tensor for its number of samples.
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


def aspect_group(stream: Stream, example: dict[str, Any]) -> int:
    """0 for an image that is at least as high as wide, 1 for a wider one; unusable ones have 0. Nothing is decoded."""
    value = example[stream.objects_column or ""]  # a stream that came this far has one
    facts = value if inner_objects(value) is not value else example
    width, height = facts.get("width"), facts.get("height")
    if not width or not height:
        try:
            width, height = Image.open(_open(example[stream.image_column] or {})).size
        except Exception:  # counted where it is decoded
            return 0
    return int(width > height)


class ProcessImage:
    """
    An image as `processor` prepares it, without the padding, which the batch will add; a class, because loader workers
    may have to pickle it.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Any) -> torch.Tensor:
        inputs = self.processor(image, return_tensors="pt")
        if "pixel_mask" not in inputs:  # RT-DETR's, say, which resizes to one size
            return inputs["pixel_values"][0]
        mask = inputs["pixel_mask"][0].bool()
        return inputs["pixel_values"][0, :, : mask.any(dim=1).sum(), : mask.any(dim=0).sum()]
