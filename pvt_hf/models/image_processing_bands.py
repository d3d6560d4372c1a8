"""
Images of other channels than RGB, such as the bands of a satellite. An image processor prepares them if `image_mean`
and `image_std` have as many values.
"""

import os
from io import BytesIO
from typing import Any

import numpy as np


CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGBA
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: files above 4 GB


def channel_counts(image_mean: Any) -> tuple[int, ...]:
    """
    The numbers of channels that images may have. If `image_mean` has one or three values, or is one number: grey, RGB
    and RGBA. Otherwise as many as it has values; such images are not converted to RGB.
    """
    count = len(image_mean) if isinstance(image_mean, (list, tuple)) else 1
    return CHANNEL_COUNTS if count in (1, 3) else (count,)


def is_tiff(source: Any) -> bool:
    """Whether `source` is the path or the content of a TIFF file."""
    if isinstance(source, (str, os.PathLike)) and os.path.isfile(source):
        with open(source, "rb") as file:
            return file.read(4) in TIFF_MAGIC
    return isinstance(source, bytes) and source[:4] in TIFF_MAGIC


def read_bands(source: str | os.PathLike | bytes) -> np.ndarray:
    """The bands of a TIFF file as (height, width, bands): samples of one page, or one page each. Pillow reads four.

    Raises:
        ImportError: tifffile is not installed.
        ValueError: a damaged file, or one without bands.
    """
    try:
        import tifffile  # here, because few programs need it
    except ImportError as error:
        raise ImportError("TIFF files of other channels than RGB need tifffile: `pip install tifffile`.") from error
    try:
        with tifffile.TiffFile(BytesIO(source) if isinstance(source, bytes) else source) as file:
            series = file.series[0]
            array, axes = series.asarray(), series.axes
    except Exception as error:  # its decoders raise many types on damaged data
        raise ValueError(f"the TIFF file cannot be read ({type(error).__name__}: {error}).") from error
    if array.ndim != 3:
        raise ValueError(f"the TIFF file has the shape {array.shape}; expected bands, height and width.")
    return np.moveaxis(array, 0, -1) if axes.endswith("YX") else array


__all__ = ["CHANNEL_COUNTS", "channel_counts", "is_tiff", "read_bands"]
