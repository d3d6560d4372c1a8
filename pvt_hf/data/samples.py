"""From an undecoded example to a training sample, or to a reason why it is skipped."""

from __future__ import annotations

import zlib
from typing import Any

import datasets
import torch
from PIL import Image

from ..models.image_processing_input import to_channels_first


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


class ProcessorTransform:
    """An image processor as a function from one PIL image to its `pixel_values` (channels, height, width)."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.as_tensor(self.processor(image)["pixel_values"][0])


def stack(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Samples of equal shapes to a batch."""
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
