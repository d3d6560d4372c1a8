"""Opening the files of masks: images with one label per pixel, palettes, NPY arrays, and one mask per object."""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image

from ...data.samples import open_encoded
from ...models.image_processing_input import decode_image
from ...models.image_processing_semantic import IGNORE_LABEL


NPY = b"\x93NUMPY"  # the first bytes of such a file


def open_mask(value: dict[str, Any]) -> Image.Image | np.ndarray:
    """
    A mask (`{"bytes": ..., "path": ...}`) as an image or, for NPY, as an array. Grey that is stored as colours (three
    equal channels, nothing transparent) becomes grey, and whole numbers that are stored as floats become integers.

    Raises:
        Exception: what Pillow and NumPy raise for files that they cannot read.
    """
    path, content = value.get("path") or "", value.get("bytes")
    if content.startswith(NPY) if content else path.lower().endswith(".npy"):
        return _whole_numbers(np.load(io.BytesIO(content) if content else path, allow_pickle=False))
    image = decode_image(open_encoded(value), upright=True)
    if image.mode == "F":
        return _whole_numbers(np.array(image))
    return _grey(image) if image.mode in ("RGB", "RGBA", "LA") else image


def _whole_numbers(array: np.ndarray) -> np.ndarray:
    is_whole = array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.round(array)).all()
    return array.astype(np.int64) if is_whole else array


def _grey(image: Image.Image) -> Image.Image:
    channels = np.array(image)
    colours, alpha = (channels, 255) if image.mode == "RGB" else (channels[..., :-1], channels[..., -1])
    is_grey = (colours == colours[..., :1]).all() and np.all(alpha == 255)
    return image.getchannel(0) if is_grey else image


def palette_labels(mask: Image.Image | np.ndarray, indices: np.ndarray, values: Collection[int]) -> np.ndarray:
    """
    The values of a mask with a palette. They are its indices, whatever the colours (Pascal VOC), with one exception: if
    the palette has only greys, and those in use are possible values, the greys are the values. A program that saves a
    grey mask as GIF, or as a smaller PNG, numbers the greys of each image anew.

    Args:
        mask: an opened mask. Without a palette, its indices are returned.
        indices: the mask as integers (H, W).
        values: the values of the classes in the masks. 255 is possible, too.
    """
    if not isinstance(mask, Image.Image) or mask.mode != "P":
        return indices
    palette = np.array(mask.getpalette("RGB"), dtype=indices.dtype).reshape(-1, 3)
    used = np.unique(indices)
    if (palette != palette[:, :1]).any() or used[-1] >= len(palette):
        return indices
    greys = palette[used, 0].tolist()
    # Black and white alone are a picture of the values 0 and 1.
    is_picture = set(greys) <= {0, IGNORE_LABEL} and IGNORE_LABEL not in values
    if is_picture or len(set(greys)) < len(greys) or not set(greys) <= {*values, IGNORE_LABEL}:
        return indices
    return palette[indices, 0]


def merge_masks(files: list[str]) -> dict[str, Any] | None:
    """
    The masks of an image's objects as one encoded mask: 1 where any of them is not 0. None if there are no files or
    their sizes differ. If a file cannot be read, returns that file, so that its sample is skipped with the reason.
    """
    merged = None
    for file in files:
        try:
            part = np.asarray(open_mask({"path": file, "bytes": None})) != 0
        except Exception:  # Pillow's decoders raise a dozen types on damaged data
            return {"path": file, "bytes": None}
        if merged is not None and merged.shape != part.shape:
            return None
        merged = part if merged is None else merged | part
    if merged is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(merged.astype(np.uint8)).save(buffer, "PNG")
    # Not the path of a file: `datasets` would drop the bytes beside it.
    return {"path": os.path.dirname(files[0]), "bytes": buffer.getvalue()}
