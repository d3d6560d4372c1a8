"""
How the image processors read images: from any source, mode, bit depth and channel layout to arrays.

Transparency is composited onto white, for Pillow images, arrays, tensors and files alike. 16-bit images are scaled to
8 bits (65535 becomes 255). The EXIF orientation is applied.
"""

import base64
import os
import warnings
from io import BytesIO
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import ExifTags, Image, ImageOps
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format, is_valid_image

from .image_processing_bands import CHANNEL_COUNTS


RAISE_LIMIT = (
    "For larger images set PIL.Image.MAX_IMAGE_PIXELS or, for the commands of pvt_hf, the environment variable "
    "PVT_HF_MAX_IMAGE_PIXELS."
)


def flatten_batch(images: Any, position: str = "images") -> list[tuple[str, Any]]:
    """Flattens nested lists and rank-4 arrays to (position, image) pairs, with positions such as `images[1][0]`."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4:
        return [pair for i, image in enumerate(images) for pair in flatten_batch(image, f"{position}[{i}]")]
    return [(position, images)]


def check_type(position: str, image: Any) -> None:
    """Raises TypeError unless `image` is an image, an array, a tensor or a source that `open_image` takes."""
    if not (is_valid_image(image) or isinstance(image, (str, bytes, os.PathLike))):
        raise TypeError(
            f"{position}: got {type(image).__name__}; expected a Pillow image, NumPy array, torch tensor, path, URL, "
            "base64 text or bytes, or lists of these."
        )


def open_file(file: Any) -> Image.Image:
    """`Image.open` of a path or file object, which does not decode, with Pillow's limit as a limit.

    A few kilobytes can hold an image that fills the memory. Pillow refuses more than twice `Image.MAX_IMAGE_PIXELS`
    pixels, and only warns of fewer.

    Raises:
        PIL.Image.DecompressionBombError: more than `Image.MAX_IMAGE_PIXELS` pixels.
        OSError: not an image file, or it cannot be read.
    """
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"{error} {RAISE_LIMIT}") from error
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(
            f"An image of {image.width}x{image.height} pixels; at most {limit:,} pixels are decoded, because a few "
            f"kilobytes can hold an image that fills the memory. {RAISE_LIMIT}"
        )
    return image


def open_image(source: str | bytes) -> Image.Image:
    """Opens a local path, an http(s) URL, base64 text (also a data URL) or the bytes of a file, without decoding it.

    Transformers' `load_image` accepts the same strings, but drops the alpha channel and saturates 16-bit files.

    Raises:
        ValueError: the source cannot be read, is not an image, or has too many pixels, see `open_file`.
    """
    shown = f"{len(source)} bytes" if isinstance(source, bytes) else repr(source[:200])
    try:
        if isinstance(source, bytes):
            return open_file(BytesIO(source))
        if source.startswith(("http://", "https://")):
            response = httpx.get(source, follow_redirects=True, timeout=60)
            return open_file(BytesIO(response.raise_for_status().content))
        if os.path.isfile(source):
            return open_file(source)
        text = source.partition(",")[2] if source.startswith("data:image/") else source
        return open_file(BytesIO(base64.b64decode(text)))
    except Image.DecompressionBombError as error:
        raise ValueError(f"cannot open {shown}: {error}") from error
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(
            f"cannot open {shown} as an image ({error}). Expected an existing file, an http(s) URL, base64 text or the "
            "bytes of an image file."
        ) from error


def decode_image(image: Image.Image, upright: bool) -> Image.Image:
    """Decodes `image` and, if `upright`, applies its EXIF orientation.

    Raises:
        ValueError: a damaged or closed file, or an image without pixels.
    """
    if 0 in image.size:
        raise ValueError(f"a zero-size image of {image.width}x{image.height} pixels; expected at least 1x1.")
    try:
        image.load()  # Pillow opens files lazily, so that damage shows here
        # `exif_transpose` would copy an image that is already upright.
        needs_turn = upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if needs_turn else image
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data
        raise ValueError(
            f"the {image.width}x{image.height} {image.format or 'image'} file cannot be decoded "
            f"({type(error).__name__}: {error}). It is truncated, damaged or already closed: replace or skip it."
        ) from error


def dtype_name(image: np.ndarray | torch.Tensor) -> str:
    """The dtype's name, such as "float32", the same for arrays and tensors and for either byte order."""
    return str(image.dtype).removeprefix("torch.") if isinstance(image, torch.Tensor) else image.dtype.name


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor on any device as an array; bfloat16, which NumPy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def check_array(
    image: np.ndarray | torch.Tensor,
    input_data_format: str | ChannelDimension | None,
    do_rescale: bool | None,
    counts: tuple[int, ...] = CHANNEL_COUNTS,
) -> ChannelDimension | None:
    """Checks one array or tensor and returns its channel layout (None for a (height, width) image).

    As everywhere in Transformers, an ambiguous shape such as (3, 500, 3) counts as channels first, with a warning.
    Float values that do not fit `do_rescale` (which expects 0..255) give a warning too.

    Raises:
        ValueError: wrong rank, no pixels, a channel count that is not in `counts`, a dtype that is neither numeric nor
            bool, or a value that is NaN or infinite.
    """
    shape, dtype = tuple(image.shape), dtype_name(image)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"an array of rank {len(shape)} and shape {shape}; expected (height, width), (height, width, channels) or "
            "(channels, height, width), or rank 4 for a batch."
        )
    if 0 in shape:
        raise ValueError(f"a zero-size array of shape {shape}; expected at least one pixel.")
    if not dtype.startswith(("uint", "int", "float", "bfloat", "bool")):
        raise ValueError(f"an array of dtype {dtype}; expected integers, floats or bool.")

    layout = None
    if len(shape) == 3:
        if input_data_format is not None:
            layout = ChannelDimension(input_data_format)
            found = shape[0] if layout == ChannelDimension.FIRST else shape[-1]
        else:
            found = shape[0] if shape[0] in counts else shape[-1]
        if found not in counts:
            names = "1 (grey), 3 (RGB) or 4 (RGBA)" if counts == CHANNEL_COUNTS else f"{counts[0]}, as image_mean has,"
            raise ValueError(
                f"an array of shape {shape}, {layout.value if layout else 'channels first or last'}; expected {names} "
                "channels. Select or stack channels, or give the image processor one value per channel in image_mean "
                "and image_std."
            )
        # reads only the shape, which tensors have too
        layout = layout or infer_channel_dimension_format(image, counts)  # type: ignore[arg-type]

    if "float" in dtype:
        finite = torch.isfinite(image) if isinstance(image, torch.Tensor) else np.isfinite(image)
        if not finite.all():
            raise ValueError(
                f"an array of shape {shape} with {int((~finite).sum())} NaN or infinite values; replace them or leave "
                "the image out."
            )
        low, high = float(image.min()), float(image.max())
        if do_rescale and (low < 0 or 0 < high <= 1 or high > 255):
            found = "only in [0, 1]" if 0 <= low and high <= 1 else "outside 0..255"
            warnings.warn(
                f"a float image has values {found} while do_rescale=True, which expects 0..255 and divides by 255. "
                "Pass do_rescale=False for images in [0, 1].",
                stacklevel=2,
            )
    return layout


def is_rgb(image: Any, layout: ChannelDimension | None) -> bool:
    """Whether a checked image is 8-bit or float RGB and needs no conversion."""
    if isinstance(image, Image.Image):
        return image.mode == "RGB"
    if layout is None:
        return False
    channels = image.shape[0] if layout == ChannelDimension.FIRST else image.shape[-1]
    return channels == 3 and ("float" in dtype_name(image) or dtype_name(image) == "uint8")


def to_eight_bit(array: np.ndarray) -> np.ndarray:
    """Integers and bool as uint8, floats as float32. False and True become 0 and 255; uint16 is divided by 257.

    Wider or signed integers (Pillow's mode "I", int32, int64) hold 8-bit as well as 16-bit images: values within 0..255
    count as 8-bit, values within 0..65535 as 16-bit.

    Raises:
        ValueError: integers below 0 or above 65535.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise ValueError(f"{array.dtype} values from {low} to {high}; expected 0..255 or 0..65535. Scale the image.")
    if array.dtype.newbyteorder("=") != np.uint16 and high <= 255:
        return array.astype(np.uint8)
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounds to the nearest


def pil_to_array(image: Image.Image, do_convert_rgb: bool | None) -> np.ndarray:
    """A decoded image of any mode as (height, width) or (height, width, channels); RGBA if it has transparency."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion saturates at 255
        grey, key = to_eight_bit(np.array(image)), image.info.get("transparency")
        if key is None or not do_convert_rgb:
            return grey
        alpha = np.where(np.array(image) == key, 0, 255).astype(np.uint8)
        return np.dstack([grey, grey, grey, alpha])
    if image.mode in ("I", "F") or not do_convert_rgb:
        return np.array(image)
    if image.mode == "La":  # premultiplied grey and alpha; Pillow converts it to LA only
        image = image.convert("LA")
    has_alpha = image.mode in ("LA", "PA", "RGBA", "RGBa")  # not by band name: LAB has a band "A"
    has_key = image.mode in ("1", "L", "P", "RGB") and image.info.get("transparency") is not None
    mode = "RGBA" if has_alpha or has_key else "RGB"
    return np.array(image if image.mode == mode else image.convert(mode))  # `convert` copies in any case


def composite_on_white(rgba: np.ndarray, white: float) -> np.ndarray:
    """(4, H, W) to (3, H, W) over white. uint8 is rounded to the nearest level; floats range from 0 to `white`.

    Raises:
        ValueError: float alpha values outside 0..`white`.
    """
    if rgba.dtype == np.uint8:
        colour, alpha = rgba[:3].astype(np.uint16), rgba[3:].astype(np.uint16)
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    share: np.ndarray = rgba[3:] / np.float32(white)
    if share.min() < 0 or share.max() > 1:
        raise ValueError(f"a float RGBA image with alpha outside 0..{white:g} (0..255 with do_rescale, else 0..1).")
    return rgba[:3] * share + np.float32(white) * (1 - share)


def to_channels_first(
    image: Image.Image | np.ndarray, layout: ChannelDimension | None, do_convert_rgb: bool | None, white: float
) -> np.ndarray:
    """A checked image as (channels, H, W), uint8 or float32; RGB if `do_convert_rgb`.

    Args:
        layout: where the channels of an array are, from `check_array`.
        white: value of white in float images, 255 or 1.

    Raises:
        ValueError: see `check_array`, `to_eight_bit` and `composite_on_white`.
    """
    if isinstance(image, Image.Image):
        array = pil_to_array(image, do_convert_rgb)
        layout = ChannelDimension.LAST if array.ndim == 3 else None
        check_array(array, layout, do_rescale=white == 255)
    else:
        array = image
    array = to_eight_bit(array)
    if layout is None:
        array = array[None]
    elif layout == ChannelDimension.LAST:
        array = np.moveaxis(array, -1, 0)
    if do_convert_rgb and array.shape[0] == 4:
        array = composite_on_white(array, white)
    elif do_convert_rgb and array.shape[0] == 1:
        array = np.repeat(array, 3, axis=0)
    return array


__all__ = [
    "check_array",
    "check_type",
    "decode_image",
    "dtype_name",
    "flatten_batch",
    "is_rgb",
    "open_file",
    "open_image",
    "to_channels_first",
    "to_numpy",
]
