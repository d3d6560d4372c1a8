"""From an undecoded example to a training sample, or to a reason why it is skipped."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import datasets
import torch
from PIL import Image

from ..models.image_processing_input import to_channels_first
from .streams import Stream


class BadSample(ValueError):
    """An example that cannot be used: skipped, counted and reported by [`pvt_hf.data.batches.BatchStream`]."""


def sample_id(example: dict[str, Any], image_column: str) -> str:
    """A name by which a user finds the example again, the same in every run: key, path, or a checksum."""
    for column in ("sample_id", "__key__", "image_id", "id"):
        if isinstance(example.get(column), str | int):
            return str(example[column])
    image = example[image_column] or {}
    if image.get("path"):
        return image["path"]
    return f"crc32:{zlib.crc32(image.get('bytes') or b''):08x}"


def is_held_out(identity: str, share: float) -> bool:
    """Whether a sample belongs to the held-out `share`; decided by its name alone (the last two parts of a path)."""
    return zlib.crc32("/".join(identity.split("/")[-2:]).encode()) / 2**32 < share


def decode_rgb(value: dict[str, Any] | None) -> Image.Image:
    """
    An undecoded image (`{"bytes": ..., "path": ...}`) as PIL RGB: upright (EXIF), transparency on white, 16 bits
    scaled to 8, like the image processors.

    Raises:
        BadSample: missing, empty, truncated or not an image.
    """
    if not value or (not value.get("bytes") and not value.get("path")):
        raise BadSample("the image is missing or empty")
    try:
        return to_rgb(datasets.Image().decode_example(value))
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data
        raise BadSample(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB, turned as it is: transparency on white, 16 bits scaled to 8."""
    # Nearly every image; what follows gives the same by way of an array, which takes a quarter longer.
    if image.mode in ("RGB", "L", "CMYK") and image.info.get("transparency") is None and 0 not in image.size:
        return image if image.mode == "RGB" else image.convert("RGB")
    array = to_channels_first(image, None, do_convert_rgb=True, white=255.0)
    return Image.fromarray(array.transpose(1, 2, 0).round().astype("uint8"))


class ClassificationSample:
    """
    Makes `{"pixel_values": (3, height, width) float, "labels": () int64}` of an example.

    Args:
        stream: where the examples come from.
        transform: PIL RGB image to tensor.
        class_names: the model's labels, in order; defaults to the stream's. String labels are looked up in it.

    Raises:
        ValueError: the stream has no label column, no class names are known, or there is only one.
    """

    def __init__(
        self,
        stream: Stream,
        transform: Callable[[Image.Image], torch.Tensor],
        class_names: tuple[str, ...] | None = None,
    ):
        if stream.label_column is None:
            raise ValueError(f"{stream.name} has no label column: name it with label_column.")
        names = class_names or stream.class_names
        if names is None:
            raise ValueError(
                f"The labels of {stream.name} have no names: give class_names, in the order of the labels."
            )
        self.class_names = names
        self.stream, self.transform, self.label_column = stream, transform, stream.label_column

    def __call__(self, example: dict[str, Any]) -> dict[str, torch.Tensor]:
        label = example[self.label_column]
        if isinstance(label, bytes):
            label = label.decode()
        if isinstance(label, str) and label in self.class_names:
            label = self.class_names.index(label)
        elif isinstance(label, str) and label.isdigit():
            label = int(label)
        if not isinstance(label, int) or not 0 <= label < len(self.class_names):
            raise BadSample(f"label {label!r} is not one of the {len(self.class_names)} classes")
        image = decode_rgb(example[self.stream.image_column])
        return {"pixel_values": self.transform(image), "labels": torch.tensor(label)}


def stack(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Samples of equal shapes to a batch."""
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
