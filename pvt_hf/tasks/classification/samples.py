"""From an undecoded image and its label to a sample for classification, or to the reason why it is skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from ...data.label_counts import LabelCounts
from ...data.samples import BadSample, decode_rgb
from ...data.streams import Stream, require_class_names
from ...data.values import read_id
from ...engine.task import Counted


class ClassificationSample:
    """
    Makes `{"pixel_values": (3, height, width) float, "labels": () int64, "label_counts": LabelCounts}` from an example,
    to train or to evaluate on.

    Args:
        stream: where the examples come from; has a "label" column.
        transform: PIL RGB image to tensor.
        class_names: the model's labels, in order; default: the stream's. Labels that are text are looked up in them.

    Raises:
        ValueError: the stream has no label column, or no class names are known.
    """

    counted = Counted("samples")

    def __init__(
        self,
        stream: Stream,
        transform: Callable[[Image.Image], torch.Tensor],
        class_names: tuple[str, ...] | None = None,
    ):
        self.stream, self.transform, self.label_column = stream, transform, stream.column("label")
        self.class_names = require_class_names(stream, class_names or stream.class_names)

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        label = self._label(example)
        image = decode_rgb(example[self.stream.image_column], self.stream.title("image"))
        counts = LabelCounts(1, {label: 1})
        return {"pixel_values": self.transform(image), "labels": torch.tensor(label), "label_counts": counts}

    def count(self, example: dict[str, Any]) -> LabelCounts:
        return LabelCounts(1, {self._label(example): 1})

    def _label(self, example: dict[str, Any]) -> int:
        value = example[self.label_column]
        label = value.decode() if isinstance(value, bytes) else value
        if isinstance(label, str) and label in self.class_names:
            return self.class_names.index(label)
        try:
            number = int(label) if isinstance(label, bool) else read_id(label)
        except (TypeError, ValueError):
            number = -1
        if not isinstance(number, int) or not 0 <= number < len(self.class_names):
            title = self.stream.title("label")
            raise BadSample(f"{title} {value!r} is not one of the {len(self.class_names)} classes")
        return number
