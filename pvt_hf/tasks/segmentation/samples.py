"""From an undecoded image and mask to a sample for semantic segmentation, or to the reason why it is skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from ...data.samples import BadSample, decode_rgb, decoding, require_class_names
from ...data.streams import Stream
from ...models.image_processing_semantic import IGNORE_LABEL, map_to_array, map_to_labels


Views = Callable[[Image.Image], list[torch.Tensor]]


def decode_labels(value: dict[str, Any] | None, num_labels: int, reduce_labels: bool, what: str = "mask") -> np.ndarray:
    """
    Decodes a mask (`{"bytes": ..., "path": ...}`) to (H, W) int64 labels: classes, and 255 for pixels without a class.

    Args:
        reduce_labels: label 0 becomes 255 and n becomes n - 1; 255 stays 255. Labels are reduced nowhere else.
        what: the mask's name in messages.

    Raises:
        BadSample: missing, empty, truncated, not an image, an image of colours, or labels that are not among the
            classes. The message gives them as they are in the mask.
    """
    with decoding(value, what):
        array = map_to_array(datasets.Image().decode_example(value), reduce_labels)
        labels = map_to_labels(array, array.shape[0], array.shape[1], reduce_labels)
    unknown = np.unique(array[(labels != IGNORE_LABEL) & (labels >= num_labels)]).tolist()
    if unknown:
        first = 1 if reduce_labels else 0
        raise BadSample(
            f"{what}: labels {', '.join(map(str, unknown[:5]))}{' ...' * (len(unknown) > 5)} are not among the "
            f"{num_labels} classes, {first} to {first + num_labels - 1} (named by class_names)"
        )
    return labels


class _DecodedSample:
    """The part that training and evaluation samples share: class names and decoding."""

    def __init__(self, stream: Stream, class_names: tuple[str, ...] | None, reduce_labels: bool):
        self.stream, self.mask_column, self.reduce_labels = stream, stream.column("mask"), reduce_labels
        first = int(reduce_labels)
        own_names = stream.class_names and stream.class_names[first:]
        self.class_names = require_class_names(stream, class_names or own_names, from_label=first)
        if len(self.class_names) > IGNORE_LABEL:
            raise ValueError(
                f"{len(self.class_names)} classes: at most {IGNORE_LABEL} are possible, because the label "
                f"{IGNORE_LABEL} marks pixels without a class."
            )

    def decode(self, example: dict[str, Any]) -> tuple[Image.Image, np.ndarray]:
        """The RGB image and its (H, W) int64 labels. Raises [`BadSample`], also if their sizes differ."""
        image = decode_rgb(example[self.stream.image_column], self.stream.title("image"))
        title = self.stream.title("mask")
        labels = decode_labels(example[self.mask_column], len(self.class_names), self.reduce_labels, title)
        if labels.shape != (image.height, image.width):
            raise BadSample(
                f"the image has {image.height}x{image.width} pixels (height x width) and its mask "
                f"{labels.shape[0]}x{labels.shape[1]}"
            )
        return image, labels


class SegmentationSample(_DecodedSample):
    """
    Makes `{"pixel_values": (3, height, width) float, "labels": (height, width) int64}` from an example, to train on.

    Args:
        stream: where the examples come from; has a "mask" column.
        transform: PIL RGB image and its (H, W) int64 labels (255: no class) to the two tensors, of one size for all.
        class_names: the model's labels, in order, after any reduction; default: the stream's (with `reduce_labels`,
            without the first).
        reduce_labels: label 0 in the masks is no class, and 1 is the model's 0, as in ADE20K.

    Raises:
        ValueError: the stream has no mask column, no class names are known, or there are more than 255.
    """

    def __init__(
        self,
        stream: Stream,
        transform: Callable[[Image.Image, np.ndarray], tuple[torch.Tensor, torch.Tensor]],
        class_names: tuple[str, ...] | None = None,
        reduce_labels: bool = False,
    ):
        super().__init__(stream, class_names, reduce_labels)
        self.transform = transform

    def __call__(self, example: dict[str, Any]) -> dict[str, torch.Tensor]:
        pixel_values, labels = self.transform(*self.decode(example))
        return {"pixel_values": pixel_values, "labels": labels}


class SegmentationEvaluationSample(_DecodedSample):
    """
    Makes `{"views": list of (3, h, w), "labels": (H, W) int64}` from an example, with labels at the image's own size.

    Args:
        transform: PIL RGB image to the tensors that the mode of inference needs, of any sizes and dtypes; see
            `pvt_hf.tasks.segmentation.inference`.
        stream, class_names, reduce_labels: as for [`SegmentationSample`], with the same errors.

    Use it with `BatchStream(..., collate=collate_lists)`, because the images differ in size.
    """

    def __init__(
        self, stream: Stream, transform: Views, class_names: tuple[str, ...] | None = None, reduce_labels: bool = False
    ):
        super().__init__(stream, class_names, reduce_labels)
        self.transform = transform

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        image, labels = self.decode(example)
        return {"views": self.transform(image), "labels": torch.from_numpy(labels)}


def collate_lists(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Makes a batch of lists of samples of any shapes."""
    return {key: [sample[key] for sample in samples] for key in samples[0]}
