"""From an undecoded image and mask to a sample for semantic segmentation, or to a reason why it is skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from ...data.samples import BadSample, decode_rgb
from ...data.streams import Stream
from ...models.image_processing_semantic import IGNORE_LABEL, map_to_array, map_to_labels


Views = Callable[[Image.Image], list[torch.Tensor]]


def decode_labels(value: dict[str, Any] | None, num_labels: int, reduce_labels: bool) -> np.ndarray:
    """
    An undecoded mask (`{"bytes": ..., "path": ...}`) as (H, W) int64 labels: classes, and 255 where there is none.

    Args:
        reduce_labels: label 0 becomes 255 and n becomes n - 1; 255 stays 255. Here and nowhere else.

    Raises:
        BadSample: missing, empty, truncated, not an image or one of colours, or a label that is no class; the message
            names the value as it is in the mask.
    """
    if not value or (not value.get("bytes") and not value.get("path")):
        raise BadSample("the mask is missing or empty")
    try:
        array = map_to_array(datasets.Image().decode_example(value), reduce_labels)
        labels = map_to_labels(array, array.shape[0], array.shape[1], reduce_labels)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data
        raise BadSample(f"mask: {type(error).__name__}: {error}") from error
    unknown = np.unique(array[(labels != IGNORE_LABEL) & (labels >= num_labels)]).tolist()
    if unknown:
        first = 1 if reduce_labels else 0
        raise BadSample(
            f"mask: labels {', '.join(map(str, unknown[:5]))}{' ...' * (len(unknown) > 5)} are not among the "
            f"{num_labels} classes, {first} to {first + num_labels - 1} (class_names tells which there are)"
        )
    return labels


class _DecodedSample:
    """What training and evaluation samples share: class names, and decoding with its checks."""

    def __init__(self, stream: Stream, class_names: tuple[str, ...] | None, reduce_labels: bool):
        if stream.mask_column is None:
            raise ValueError(f"{stream.name} has no mask column: open it with open_segmentation_stream.")
        names = class_names or (stream.class_names and stream.class_names[int(reduce_labels) :])
        if not names:
            raise ValueError(
                f"The labels of {stream.name} have no names: give class_names, in the order of the labels"
                f"{' from 1 on, since 0 is ignored' if reduce_labels else ''}."
            )
        if len(names) > IGNORE_LABEL:
            raise ValueError(
                f"{len(names)} classes: at most {IGNORE_LABEL} are possible, because the label "
                f"{IGNORE_LABEL} is that of pixels without a class."
            )
        self.class_names = names
        self.stream, self.mask_column, self.reduce_labels = stream, stream.mask_column, reduce_labels

    def decode(self, example: dict[str, Any]) -> tuple[Image.Image, np.ndarray]:
        """The RGB image and its (H, W) int64 labels. Raises [`BadSample`], also if their sizes differ."""
        image = decode_rgb(example[self.stream.image_column])
        labels = decode_labels(example[self.mask_column], len(self.class_names), self.reduce_labels)
        if labels.shape != (image.height, image.width):
            raise BadSample(
                f"the image has {image.height}x{image.width} pixels (height x width) and its mask "
                f"{labels.shape[0]}x{labels.shape[1]}"
            )
        return image, labels


class SegmentationSample(_DecodedSample):
    """
    Makes `{"pixel_values": (3, height, width) float, "labels": (height, width) int64}` of an example, to train on.

    Args:
        stream: where the examples come from; has a `mask_column`.
        transform: PIL RGB image and its (H, W) int64 labels (255: no class) to the two tensors, of one size for all.
        class_names: the model's labels, in order, after any reduction; defaults to the stream's (without the first of
            them with `reduce_labels`).
        reduce_labels: label 0 of the masks is no class and 1 is the model's 0, as ADE20K has it.

    Raises:
        ValueError: the stream has no masks, or no class names are known, or there are more than 255.
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
    Makes `{"views": list of (3, h, w), "labels": (H, W) int64}` of an example, the labels at the image's own size.

    Args:
        views: PIL RGB image to the tensors that the mode of inference works on, of any sizes and dtypes; from
            `pvt_hf.tasks.segmentation.inference`.
        stream, class_names, reduce_labels: as for [`SegmentationSample`], with the same errors.

    Use it with `BatchStream(..., collate=collate_lists)`: images of different sizes are no tensor.
    """

    def __init__(
        self,
        stream: Stream,
        views: Views,
        class_names: tuple[str, ...] | None = None,
        reduce_labels: bool = False,
    ):
        super().__init__(stream, class_names, reduce_labels)
        self.views = views

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        image, labels = self.decode(example)
        return {"views": self.views(image), "labels": torch.from_numpy(labels)}


def collate_lists(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Samples of any shapes to a batch of lists."""
    return {key: [sample[key] for sample in samples] for key in samples[0]}
