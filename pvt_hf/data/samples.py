"""Decoding images, naming samples, and what the tasks' samples share. Needs the core only: predict uses it."""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..models.image_processing_input import decode_image, open_file, to_channels_first


# Column with the file and row of an example, see `parquet.py`
ROW_COLUMN = "__row__"
# Column with the reason why an example cannot be used, of readers that find out before it is decoded; None if it can
PROBLEM_COLUMN = "__problem__"


class BadSample(ValueError):
    """An example that cannot be used: skipped, counted and reported by [`pvt_hf.data.batches.BatchStream`]."""


def sample_id(example: dict[str, Any], image_column: str) -> str:
    """A name by which a user finds the example, the same in every run: its key, the image's path, or a checksum."""
    for column in ("sample_id", "__key__", "image_id", "id"):
        if isinstance(example.get(column), str | int):
            return str(example[column])
    image = example[image_column] or {}
    if image.get("path"):
        return image["path"]
    return f"crc32:{zlib.crc32(image.get('bytes') or b''):08x}"


def place(example: dict[str, Any]) -> str:
    """Where an example is in its file, such as " (train.parquet, row 7)", for messages; "" if that is not known."""
    return f" ({example[ROW_COLUMN]})" if example.get(ROW_COLUMN) else ""


def short_name(name: str) -> str:
    """The last two parts of a path: the same for a copy of the data in another place."""
    return "/".join(name.split("/")[-2:])


def is_held_out(name: str, share: float) -> bool:
    """Whether a sample belongs to the held-out `share`. Only its short name decides."""
    return zlib.crc32(short_name(name).encode()) / 2**32 < share


@contextlib.contextmanager
def decoding(value: dict[str, Any] | None, what: str) -> Iterator[None]:
    """Turns any error in the block into a [`BadSample`], and raises one if the undecoded image is missing or empty."""
    if not value or (not value.get("bytes") and not value.get("path")):
        raise BadSample(f"the {what} is missing or empty")
    try:
        yield
    except (ValueError, Image.DecompressionBombError) as error:
        raise BadSample(f"{what}: {error}") from error
    except UnidentifiedImageError as error:
        raise BadSample(
            f"{what}: {error}. It is no image that Pillow reads, or it is damaged: repair or remove it."
        ) from error
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data
        raise BadSample(f"{what}: {type(error).__name__}: {error}") from error


def set_pixel_limit() -> None:
    """Sets Pillow's limit to that of the environment variable PVT_HF_MAX_IMAGE_PIXELS, if there is one."""
    limit = os.environ.get("PVT_HF_MAX_IMAGE_PIXELS", "")
    if limit:  # read for each image, because the loader's workers are processes of their own
        if not limit.isdecimal():
            raise ValueError(f"PVT_HF_MAX_IMAGE_PIXELS is {limit!r}; expected a number of pixels, such as 200000000")
        Image.MAX_IMAGE_PIXELS = int(limit)


def open_encoded(value: dict[str, Any]) -> Image.Image:
    """
    Opens an image (`{"bytes": ..., "path": ...}`; the path may be any of fsspec's, such as on the Hub) without decoding
    its pixels.

    Raises:
        PIL.Image.DecompressionBombError: more than `PIL.Image.MAX_IMAGE_PIXELS` pixels. The environment variable
            PVT_HF_MAX_IMAGE_PIXELS sets that number.
        OSError, ValueError: the file cannot be read, is not a regular file, or is not an image.
    """
    set_pixel_limit()
    if value.get("bytes"):
        return open_file(io.BytesIO(value["bytes"]))
    path = value["path"]
    if os.path.isfile(path):
        return open_file(path)
    if os.path.exists(path):  # reading a pipe or a device may never end
        raise ValueError(f"{path} is not a regular file")
    with fsspec.open(path, "rb") as file:
        return open_file(io.BytesIO(file.read()))


def decode_rgb(value: dict[str, Any] | None, what: str = "image") -> Image.Image:
    """
    Decodes an image (`{"bytes": ..., "path": ...}`) to PIL RGB as the image processors do: upright (EXIF), transparency
    on white, 16 bits scaled to 8; floats as in [`to_rgb`].

    Args:
        what: the image's name in messages.

    Raises:
        BadSample: missing, empty, truncated, not an image, floats in another range, or with too many pixels, see
            [`open_encoded`].
    """
    with decoding(value, what):
        return to_rgb(decode_image(open_encoded(value or {}), upright=True))


def to_rgb(image: Image.Image) -> Image.Image:
    """
    A PIL image as RGB: transparency on white, 16 bits and floats from 0 to 1 scaled to 8 bits. It is not turned.

    Raises:
        ValueError: floats that are NaN, or outside both 0..1 and 0..255; integers outside 0..65535.
    """
    # Nearly every image. The code below gives the same, but goes through an array, which takes a quarter longer.
    if image.mode in ("RGB", "L", "P", "CMYK") and image.info.get("transparency") is None and 0 not in image.size:
        return image if image.mode == "RGB" else image.convert("RGB")
    array = to_channels_first(_in_bytes(image) if image.mode == "F" else image, None, do_convert_rgb=True, white=255.0)
    return Image.fromarray(array.transpose(1, 2, 0).round().astype("uint8"))


def _in_bytes(image: Image.Image) -> Image.Image:
    """An image of floats (mode "F") with values in 0..255. A file does not say which of its values is white."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # NaN is not
        raise ValueError(
            f"float values from {low:g} to {high:g}; expected 0 to 1, or 0 to 255, without NaN. Scale them, or save "
            "the image with 8 or 16 bits."
        )
    return Image.fromarray((values if high > 1 else values * 255).round().astype(np.uint8))


class ProcessorTransform:
    """
    An image processor as a function from one PIL image to its `pixel_values` (3, height, width), without padding.

    A class, because loader workers may have to pickle it.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Image.Image) -> torch.Tensor:
        inputs = self.processor(image)
        pixel_values = torch.as_tensor(inputs["pixel_values"][0])
        if "pixel_mask" not in inputs:
            return pixel_values
        mask = torch.as_tensor(inputs["pixel_mask"][0]).bool()
        return pixel_values[:, : mask.any(dim=1).sum(), : mask.any(dim=0).sum()]


def stack(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Makes a batch of samples of equal shapes."""
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
