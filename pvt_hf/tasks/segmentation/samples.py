"""From an undecoded image and mask to a sample for semantic segmentation, or to the reason why it is skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...data.label_counts import LabelCounts
from ...data.samples import BadSample, decode_rgb, decoding
from ...data.streams import Stream, require_class_names
from ...engine.task import Counted
from ...models.image_processing_semantic import IGNORE_LABEL, map_to_array, map_to_labels
from ...weights.opening import shorten
from .masks import open_mask, palette_labels


ADVICE = (
    f"If {IGNORE_LABEL} marks a class, give the value of each class in the masks, in the order of the classes: "
    f"--mask_values 0 {IGNORE_LABEL}."
)
Views = Callable[[Image.Image], list[torch.Tensor]]


def decode_labels(
    value: dict[str, Any] | None,
    num_labels: int,
    reduce_labels: bool,
    mask_values: Sequence[int] = (),
    what: str = "mask",
    ignore_other_values: bool = False,
) -> np.ndarray:
    """
    Decodes a mask (`{"bytes": ..., "path": ...}`) to (H, W) int64 labels: classes, and 255 for pixels without a class.

    Args:
        reduce_labels: label 0 becomes 255 and n becomes n - 1; 255 stays 255. Labels are reduced nowhere else.
        mask_values: the value of each class in the mask, if that is not the class itself. 255 is no class, unless it is
            among them.
        what: the mask's name in messages.
        ignore_other_values: values that are not among `mask_values` are no class; otherwise they are an error.

    Raises:
        BadSample: missing, empty, truncated, not an image, an image of colours, or labels that are not among the
            classes. The message gives them as they are in the mask.
    """
    with decoding(value, what):
        mask = open_mask(value or {})
        values = mask_values or range(num_labels + int(reduce_labels))
        array = palette_labels(mask, map_to_array(mask, reduce_labels), values)
        if mask_values:
            labels = values_to_labels(array, mask_values)
            if ignore_other_values:
                labels[labels == len(mask_values)] = IGNORE_LABEL
        else:
            labels = map_to_labels(array, array.shape[0], array.shape[1], reduce_labels)
    unknown = np.unique(array[(labels != IGNORE_LABEL) & (labels >= num_labels)]).tolist()
    if unknown:
        first = 1 if reduce_labels else 0
        known = ", ".join(map(str, mask_values)) if mask_values else f"{first} to {first + num_labels - 1}"
        raise BadSample(
            f"{what}: labels {', '.join(map(str, unknown[:5]))}{' ...' * (len(unknown) > 5)} are not among the "
            f"{num_labels} classes, {known} (named by class_names; for other values give mask_values)"
        )
    return labels


def values_to_labels(array: np.ndarray, mask_values: Sequence[int]) -> np.ndarray:
    """
    The position in `mask_values` of each value of `array`, int64. A value that is not there becomes 255 if it is 255,
    otherwise the number of values.
    """
    values = np.asarray(mask_values)
    order = values.argsort()
    found = order[np.searchsorted(values, array, sorter=order).clip(max=len(values) - 1)]
    others = np.where(array == IGNORE_LABEL, IGNORE_LABEL, len(values))
    return np.where(values[found] == array, found, others)


class _DecodedSample:
    """The part that training and evaluation samples share: class names, decoding and counting."""

    def __init__(
        self,
        stream: Stream,
        class_names: tuple[str, ...] | None,
        reduce_labels: bool,
        mask_values: Sequence[int],
        ignore_other_values: bool,
    ):
        self.stream, self.mask_column, self.reduce_labels = stream, stream.column("mask"), reduce_labels
        self.mask_values, self.ignore_other_values = tuple(mask_values), ignore_other_values
        first = int(reduce_labels)
        own_names = stream.class_names and stream.class_names[first:]
        self.class_names = require_class_names(stream, class_names or own_names, from_label=first)
        if len(self.class_names) > IGNORE_LABEL:
            raise ValueError(
                f"{len(self.class_names)} classes: at most {IGNORE_LABEL} are possible, because the label "
                f"{IGNORE_LABEL} marks pixels without a class."
            )
        if mask_values and len(mask_values) != len(self.class_names):
            raise ValueError(
                f"mask_values has {len(mask_values)} values, {shorten([*map(str, mask_values)])}, for "
                f"{len(self.class_names)} classes, {shorten(self.class_names)}: give one value for each class."
            )
        if mask_values and reduce_labels:
            raise ValueError("reduce_labels and mask_values both say which label a value is: give one of them.")
        self.counted = Counted("pixels", opens_files=True, advice="" if mask_values or reduce_labels else ADVICE)

    def decode(self, example: dict[str, Any]) -> tuple[Image.Image, np.ndarray]:
        """The RGB image and its (H, W) int64 labels. Raises [`BadSample`], also if their sizes differ."""
        image = decode_rgb(example[self.stream.image_column], self.stream.title("image"))
        labels = self._labels(example)
        if labels.shape != (image.height, image.width):
            raise BadSample(
                f"the image has {image.height}x{image.width} pixels (height x width) and its mask "
                f"{labels.shape[0]}x{labels.shape[1]}"
            )
        return image, labels

    def count(self, example: dict[str, Any]) -> LabelCounts:
        """The labelled pixels of each class, before any crop."""
        return self._count(self._labels(example))

    def _labels(self, example: dict[str, Any]) -> np.ndarray:
        value, title = example[self.mask_column], self.stream.title("mask")
        return decode_labels(
            value, len(self.class_names), self.reduce_labels, self.mask_values, title, self.ignore_other_values
        )

    def _count(self, labels: np.ndarray) -> LabelCounts:
        pixels = dict(enumerate(np.bincount(labels.ravel(), minlength=IGNORE_LABEL + 1).tolist()))
        ignored = pixels.pop(IGNORE_LABEL)
        values = (
            "0 (reduce_labels) or " if self.reduce_labels else "" if not self.ignore_other_values else "not named or "
        )
        reason = f"of value {values}{IGNORE_LABEL}, which is no class"
        return LabelCounts(1, {label: n for label, n in pixels.items() if n}, {reason: ignored} if ignored else {})


class SegmentationSample(_DecodedSample):
    """
    Makes `{"pixel_values": (3, height, width) float, "labels": (height, width) int64, "label_counts": LabelCounts}`
    from an example, to train on. The counts are of the whole mask.

    Args:
        stream: where the examples come from; has a "mask" column.
        transform: PIL RGB image and its (H, W) int64 labels (255: no class) to the two tensors, of one size for all.
        class_names: the model's labels, in order, after any reduction; default: the stream's (with `reduce_labels`,
            without the first).
        reduce_labels: label 0 in the masks is no class, and 1 is the model's 0, as in ADE20K.
        mask_values: the value of each class in the masks, if that is not the class itself.
        ignore_other_values: values that are not among `mask_values` are no class; otherwise they are an error.

    Raises:
        ValueError: the stream has no mask column, no class names are known, or there are more than 255; `mask_values`
            is not one value per class, or comes with `reduce_labels`.
    """

    def __init__(
        self,
        stream: Stream,
        transform: Callable[[Image.Image, np.ndarray], tuple[torch.Tensor, torch.Tensor]],
        class_names: tuple[str, ...] | None = None,
        reduce_labels: bool = False,
        mask_values: Sequence[int] = (),
        ignore_other_values: bool = False,
    ):
        super().__init__(stream, class_names, reduce_labels, mask_values, ignore_other_values)
        self.transform = transform

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        image, whole = self.decode(example)
        pixel_values, labels = self.transform(image, whole)
        return {"pixel_values": pixel_values, "labels": labels, "label_counts": self._count(whole)}


class SegmentationEvaluationSample(_DecodedSample):
    """
    Makes `{"views": list of (3, h, w), "labels": (H, W) int64, "label_counts": LabelCounts}` from an example, with
    labels at the image's own size.

    Args:
        transform: PIL RGB image to the tensors that the mode of inference needs, of any sizes and dtypes; see
            `pvt_hf.tasks.segmentation.inference`.
        stream, class_names, reduce_labels, mask_values, ignore_other_values: as for [`SegmentationSample`], with the
            same errors.

    Use it with `BatchStream(..., collate=collate_lists)`, because the images differ in size.
    """

    def __init__(
        self,
        stream: Stream,
        transform: Views,
        class_names: tuple[str, ...] | None = None,
        reduce_labels: bool = False,
        mask_values: Sequence[int] = (),
        ignore_other_values: bool = False,
    ):
        super().__init__(stream, class_names, reduce_labels, mask_values, ignore_other_values)
        self.transform = transform

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        image, labels = self.decode(example)
        views, counts = self.transform(image), self._count(labels)
        return {"views": views, "labels": torch.from_numpy(labels), "label_counts": counts}


def collate_lists(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Makes a batch of lists of samples of any shapes."""
    return {key: [sample[key] for sample in samples] for key in samples[0]}
