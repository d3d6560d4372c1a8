"""
Image processor for PVT on Pillow and NumPy, and the input handling that it shares with the torchvision backend.

Transparency is composited onto white, for Pillow images, arrays, tensors and files alike. 16-bit images are scaled to
8 bits (65535 becomes 255). The EXIF orientation is applied. See `PvtImageProcessorPil` for the settings.
"""

import base64
import json
import os
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
    infer_channel_dimension_format,
    is_valid_image,
)
from transformers.processing_utils import ImagesKwargs


CHANNEL_COUNTS = (1, 3, 4)  # grey, RGB, RGBA

# Keeping the ratio of a very elongated image multiplies its area; 2**28 RGB pixels are 0.8 GB.
MAX_RESIZED_PIXELS = 2**28

# What Transformers' own PvtImageProcessor means by the keys that its files leave out.
NATIVE_SETTINGS = {
    "size": {"height": 224, "width": 224},
    "default_to_square": True,
    "do_center_crop": False,
    "match_native": True,
}


def flatten_batch(images: Any, position: str = "images") -> list[tuple[str, Any]]:
    """Flattens nested lists and rank-4 arrays to (position, image) pairs; the position reads like `images[1][0]`."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4:
        return [pair for i, image in enumerate(images) for pair in flatten_batch(image, f"{position}[{i}]")]
    return [(position, images)]


def open_image(source: str | bytes) -> Image.Image:
    """Opens a local path, an http(s) URL, base64 text (also as a data URL) or the bytes of an image file, undecoded.

    Transformers' `load_image` accepts the same text, but drops the alpha channel and saturates 16-bit files.

    Raises:
        ValueError: nothing could be read there, or it is not an image.
    """
    shown = f"{len(source)} bytes" if isinstance(source, bytes) else repr(source[:200])
    try:
        if isinstance(source, bytes):
            return Image.open(BytesIO(source))
        if source.startswith(("http://", "https://")):
            response = httpx.get(source, follow_redirects=True, timeout=60)
            return Image.open(BytesIO(response.raise_for_status().content))
        if os.path.isfile(source):
            return Image.open(source)
        text = source.partition(",")[2] if source.startswith("data:image/") else source
        return Image.open(BytesIO(base64.b64decode(text)))
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot open {shown} as an image ({error}). Expected an existing file, an http(s) URL, base64 text or the "
            "bytes of an image file."
        ) from error


def decode_image(image: Image.Image, upright: bool) -> Image.Image:
    """Decodes `image`; applies the EXIF orientation if `upright`. ValueError for damaged files and zero-size images."""
    if 0 in image.size:
        raise ValueError(f"a zero-size image of {image.width}x{image.height} pixels; expected at least 1x1.")
    try:
        image.load()  # Pillow opens files lazily, so that damage shows here
        # `exif_transpose` copies an image that is upright already.
        turned = upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged data
        raise ValueError(
            f"the {image.width}x{image.height} {image.format or 'image'} file cannot be decoded "
            f"({type(error).__name__}: {error}). It is truncated, damaged or already closed: replace or skip it."
        ) from error


def dtype_name(image: np.ndarray | torch.Tensor) -> str:
    """The name of an array's or tensor's dtype, such as "float32", whatever its byte order."""
    return str(image.dtype).removeprefix("torch.") if isinstance(image, torch.Tensor) else image.dtype.name


def check_array(
    image: np.ndarray | torch.Tensor, input_data_format: str | ChannelDimension | None, do_rescale: bool | None
) -> ChannelDimension | None:
    """Checks one array or tensor and returns where its channels are (None for a (height, width) image).

    An ambiguous shape such as (3, 500, 3) counts as channels first, with a warning, as everywhere in Transformers.

    Raises:
        ValueError: wrong rank, no pixels, a channel count other than 1, 3 or 4, a dtype that is not a number or bool,
            or a value that is NaN or infinite.
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
            found = shape[0] if shape[0] in CHANNEL_COUNTS else shape[-1]
        if found not in CHANNEL_COUNTS:
            raise ValueError(
                f"an array of shape {shape}, {layout.value if layout else 'channels first or last'}; expected 1 "
                "(grey), 3 (RGB) or 4 (RGBA) channels. Select or stack channels so that there are 1, 3 or 4."
            )
        # looks at the shape only, of whichever it is
        layout = layout or infer_channel_dimension_format(image, CHANNEL_COUNTS)  # type: ignore[arg-type]

    if "float" in dtype:
        finite = torch.isfinite(image) if isinstance(image, torch.Tensor) else np.isfinite(image)
        if not finite.all():
            raise ValueError(
                f"an array of shape {shape} with {int((~finite).sum())} NaN or infinite values; replace them or leave "
                "the image out."
            )
        low, high = float(image.min()), float(image.max())
        if do_rescale and (low < 0 or 0 < high <= 1 or high > 255):
            found = "only in [0, 1]" if 0 <= low and high <= 1 else "outside of 0..255"
            warnings.warn(
                f"a float image has values {found} while do_rescale=True, which expects 0..255 and divides by 255. "
                "Pass do_rescale=False for images that are already in [0, 1].",
                stacklevel=2,
            )
    return layout


def is_rgb(image: Any, layout: ChannelDimension | None) -> bool:
    """Whether `image` (checked) is 8-bit or float RGB, so that no conversion is due."""
    if isinstance(image, Image.Image):
        return image.mode == "RGB"
    if layout is None:
        return False
    channels = image.shape[0] if layout == ChannelDimension.FIRST else image.shape[-1]
    return channels == 3 and ("float" in dtype_name(image) or dtype_name(image) == "uint8")


def to_eight_bit(array: np.ndarray) -> np.ndarray:
    """Any integer or bool array as uint8, floats as float32. False/True become 0/255, uint16 is divided by 257.

    Other integers (Pillow's mode "I", int32 and int64 arrays) carry both 8-bit and 16-bit images: they count as 8-bit
    when all values lie in 0..255, as 16-bit when all lie in 0..65535. ValueError for values outside of that.
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
    """A decoded image of any mode as (height, width) or (height, width, channels); RGBA where it is transparent."""
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
    """(4, H, W) to (3, H, W) over white; uint8 rounds to the nearest, floats have `white` as their maximum."""
    if rgba.dtype == np.uint8:
        colour, alpha = rgba[:3].astype(np.uint16), rgba[3:].astype(np.uint16)
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    share: np.ndarray = rgba[3:] / np.float32(white)
    if share.min() < 0 or share.max() > 1:
        raise ValueError(f"a float RGBA image with alpha outside of 0..{white:g} (0..255 with do_rescale, else 0..1).")
    return rgba[:3] * share + np.float32(white) * (1 - share)


def to_channels_first(
    image: Image.Image | np.ndarray, layout: ChannelDimension | None, do_convert_rgb: bool | None, white: float
) -> np.ndarray:
    """A checked image as (channels, H, W), uint8 or float32; three channels when `do_convert_rgb`."""
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


def resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """The (height, width) after resizing, by torchvision's arithmetic (`Resize` with `size` and `max_size`).

    Transformers' helper for `shortest_edge` with `longest_edge` rounds differently, and some results could be 0; here
    no side falls below 1.

    Raises:
        ValueError: `size` has none of the supported sets of keys, or the result would exceed MAX_RESIZED_PIXELS.
    """
    if size.height and size.width:
        return size.height, size.width
    short, long = min(height, width), max(height, width)
    if size.shortest_edge:
        new_short, new_long = size.shortest_edge, int(size.shortest_edge * long / short)
        if size.longest_edge and new_long > size.longest_edge:
            new_short, new_long = int(size.longest_edge * new_short / new_long), size.longest_edge
    elif size.longest_edge:
        new_short, new_long = int(size.longest_edge * short / long), size.longest_edge
    elif size.max_height and size.max_width:
        new_height, new_width = get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
        return max(new_height, 1), max(new_width, 1)
    else:
        raise ValueError(
            f"size={dict(size)}; expected positive 'height' and 'width', 'shortest_edge' (with or without "
            "'longest_edge'), 'longest_edge', or 'max_height' and 'max_width'."
        )
    new_short = max(new_short, 1)
    if new_short * new_long > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"an image of {height}x{width} is so elongated that it would be resized to {new_short}x{new_long} pixels. "
            "Crop it, or give size={'height': ..., 'width': ...} or a 'longest_edge'."
        )
    return (new_long, new_short) if width <= height else (new_short, new_long)


def rescaled_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """The (height, width) after resizing, by mmcv's arithmetic (`rescale_size`), for dense prediction.

    One factor for both sides, which makes the shorter one `shortest_edge` unless the longer one would exceed
    `longest_edge`; halves are rounded up. {"height", "width"} is taken as it is. Unlike there, no side falls below 1.

    Raises:
        ValueError: `size` has other keys, or the result would exceed MAX_RESIZED_PIXELS.
    """
    if size.height and size.width:
        scaled = (size.height, size.width)
    elif size.shortest_edge:
        factor = size.shortest_edge / min(height, width)
        if size.longest_edge:
            factor = min(factor, size.longest_edge / max(height, width))
        scaled = (max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1))
    else:
        raise ValueError(
            f"size={dict(size)}; expected positive 'shortest_edge' (with or without 'longest_edge'), or 'height' and "
            "'width'."
        )
    if scaled[0] * scaled[1] > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"an image of {height}x{width} would be resized to {scaled[0]}x{scaled[1]} pixels. Crop it, or give a "
            "smaller size, such as one with a 'longest_edge'."
        )
    return scaled


class PvtImageProcessorSettings(ImagesKwargs, total=False):
    """
    match_native (`bool`, defaults to False):
        Whether the processor gives the pixels of Transformers' own. In the constructor only.
    """

    match_native: bool


class PvtImageProcessorMixin(BaseImageProcessor):
    """What both backends share: settings, reading of files, input checks and the size arithmetic of torchvision."""

    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 256}
    default_to_square = False  # size=256 is the shorter side, as in the official evaluation
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    crop_size: dict[str, int] | None = {"height": 224, "width": 224}
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    match_native = False

    if TYPE_CHECKING:  # of the backends: Transformers' (__init__, pad) and ours (crop)

        def __init__(self, **kwargs: Unpack[PvtImageProcessorSettings]) -> None: ...
        def pad(self, images: Any, *args: Any, **kwargs: Any) -> Any: ...
        def crop(self, image: Any, height: int, width: int) -> Any: ...

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> "PvtImageProcessorMixin":
        """Builds a processor from the contents of a file; `kwargs` win over them.

        A file without `do_center_crop` (or with null) was written by Transformers' own PvtImageProcessor, for PVT or
        PVTv2, and keeps that class's meaning. Files of this class always hold the key, and their `size` is a dict; a
        file with an int is therefore native too, and means a square.
        """
        unset = {"do_center_crop", "crop_size", "do_convert_rgb", "size"}  # null in files of Transformers 4
        settings = {key: value for key, value in image_processor_dict.items() if value is not None or key not in unset}
        if "do_center_crop" not in settings:
            settings = {**NATIVE_SETTINGS, **settings}
        elif isinstance(settings.get("size"), int):
            settings = {"default_to_square": True, "match_native": True, **settings}
        names = [*cls.valid_kwargs.__annotations__, "match_native"]
        given = {name: kwargs.pop(name) for name in names if name in kwargs}
        settings.update((name, value) for name, value in given.items() if value is not None)
        return super().from_dict(settings, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> "PvtImageProcessorMixin":
        """Builds a processor from a JSON file, by the rules of `from_dict`."""
        with open(json_file, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens paths, URLs, base64 text and file contents (bytes), also in lists; passes images through.

        Raises:
            ValueError: a source that cannot be read as an image.
        """
        source = image_url_or_urls
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        if isinstance(source, bytes) or (isinstance(source, str) and not self.match_native):
            return open_image(source)
        if not isinstance(source, str):
            return super().fetch_images(source)
        try:
            return super().fetch_images(source)
        except Exception as error:  # torchvision's and Pillow's decoders raise many types on damaged data
            raise ValueError(f"cannot read {source[:200]!r} as an image ({type(error).__name__}: {error}).") from error

    def _prepare_image_like_inputs(self, images: Any, *args: Any, expected_ndims: int = 3, **kwargs: Any) -> list:
        """Flattens the batch and prepares each image; errors name the position, such as `images[2]`."""
        batch = flatten_batch(images)
        if not batch:
            raise ValueError("no image was given (an empty list or batch); expected at least one.")
        prepared = []
        for position, image in batch:
            if not (is_valid_image(image) or isinstance(image, (str, bytes, os.PathLike))):
                raise TypeError(
                    f"{position}: got {type(image).__name__}; expected a Pillow image, NumPy array, torch tensor, "
                    "path, URL, base64 text or bytes, or lists of these."
                )
            try:
                prepared.append(self.process_image(self.fetch_images(image), *args, **kwargs))
            except ValueError as error:
                raise ValueError(f"{position}: {error}") from error
        return prepared

    def check_image(
        self, image: Any, input_data_format: str | ChannelDimension | None, do_rescale: bool | None
    ) -> tuple[Any, ChannelDimension | None]:
        """Returns the decoded, upright image and its channel layout (None for Pillow and (H, W) images).

        Raises:
            ValueError: see `decode_image` and `check_array`.
        """
        if not isinstance(image, Image.Image):
            return image, check_array(image, input_data_format, do_rescale)
        # The native class turns files upright, but not images that were already open.
        return decode_image(image, upright=not self.match_native), None

    def resize(self, image: Any, size: SizeDict, *args: Any, **kwargs: Any) -> Any:
        """Resizes one image (C, H, W), or several of one size in the torchvision backend (N, C, H, W)."""
        if not self.match_native:
            height, width = image.shape[-2:]
            height, width = resized_size(height, width, size)
            size = SizeDict(height=height, width=width)
        return super().resize(image, size, *args, **kwargs)  # type: ignore[misc]  # a backend's, which comes next

    def center_crop(self, image: Any, size: Any, *args: Any, **kwargs: Any) -> Any:
        """Crops to (height, width) as torchvision's `CenterCrop`, padding with black where the image is smaller.

        The base classes round an odd margin down; torchvision rounds a half to the even number.
        """
        if not (size.height and size.width):
            raise ValueError(f"crop_size={dict(size)}; expected positive 'height' and 'width', or an int.")
        if self.match_native:
            return super().center_crop(image, size, *args, **kwargs)
        if size.height > image.shape[-2] or size.width > image.shape[-1]:
            warnings.warn(
                f"crop_size {size.height}x{size.width} exceeds the resized image, which is padded with black. Set "
                "crop_size or a larger size, or do_center_crop=False.",
                stacklevel=2,
            )
        return self.crop(image, size.height, size.width)


class PvtImageProcessorPil(PvtImageProcessorMixin, PilBackend):
    """
    Image processor for PVT on Pillow and NumPy.

    The defaults are the official evaluation (whai362/PVT, classification/datasets.py, `build_transform`): shorter side
    to 256 with bicubic interpolation, centre crop of 224, values divided by 255, ImageNet mean and standard deviation.
    8-bit images give what torchvision's transforms give on a Pillow image, float images what they give on a tensor
    (float32 resizing, where bicubic interpolation overshoots at sharp edges instead of being clipped).

    Args (all but match_native are also keyword arguments of the call):
        do_convert_rgb (`bool`, defaults to True): any mode, grey and RGBA arrays to RGB, transparency over white.
        do_resize (`bool`, defaults to True)
        size (`int` or `dict`, defaults to `{"shortest_edge": 256}`): an int is the shorter side; `{"height", "width"}`,
            `{"shortest_edge", "longest_edge"}` and `{"longest_edge"}` work as well.
        resample (`PIL.Image.Resampling` or `int`, defaults to BICUBIC)
        do_center_crop (`bool`, defaults to True)
        crop_size (`int` or `dict`, defaults to 224x224): smaller images are padded with black, with a warning.
        do_rescale (`bool`, defaults to True), rescale_factor (`float`, defaults to 1/255): as everywhere in
            Transformers, float images are then expected in 0..255 (a warning otherwise); pass False for [0, 1].
        do_normalize (`bool`, defaults to True), image_mean, image_std (default to ImageNet's)
        match_native (`bool`, defaults to False): set when a file of Transformers' own PvtImageProcessor is loaded. RGB
            input then gives that class's pixels exactly: no EXIF orientation for images that are already open, no
            colour-key transparency, its 8-bit resizing of floats, its decoder for files.

    The call takes one image, a list, nested lists or a batch array: Pillow images of any mode; NumPy arrays and torch
    tensors (height, width), (height, width, channels) or (channels, height, width); paths, URLs, base64 text, bytes. It
    returns a `BatchFeature` with `pixel_values`: float32 (batch, 3, 224, 224) for `return_tensors="pt"` or `"np"`, else
    a list of (3, 224, 224).

    Raises:
        ValueError: an empty batch, a damaged or zero-size image, NaN or infinite values, a wrong rank or channel count;
            the message names the image's position.
        TypeError: an item that is no image.
    """

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """One image as (channels, H, W), uint8 or float32."""
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # NumPy has no bfloat16
        image, layout = self.check_image(image, input_data_format, do_rescale)
        if self.match_native and is_rgb(image, layout):
            return super().process_image(image, do_convert_rgb=False, input_data_format=layout)
        return to_channels_first(image, layout, do_convert_rgb, white=255.0 if do_rescale else 1.0)

    def resize(self, image: Any, size: SizeDict, resample: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Resizes (C, H, W); floats in Pillow's float mode, where the base class truncates them to 8 bits."""
        if image.dtype == np.uint8:
            return super().resize(image, size, resample, *args, **kwargs)
        if self.match_native:
            try:
                return super().resize(image, size, resample, *args, **kwargs)
            except ValueError:
                pass  # the native class refuses floats that are neither whole numbers nor in [0, 1]
        height, width = image.shape[-2:]
        height, width = resized_size(height, width, size)
        channels = [Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32)) for channel in image]
        return np.stack([np.array(channel.resize((width, height), resample)) for channel in channels])

    def crop(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """The central (height, width) of (C, H, W) by torchvision's rounding, with zeros where the image is smaller."""
        short_by = [max(height - image.shape[-2], 0), max(width - image.shape[-1], 0)]
        image = np.pad(image, [(0, 0), *((missing // 2, missing - missing // 2) for missing in short_by)])
        top, left = round((image.shape[-2] - height) / 2), round((image.shape[-1] - width) / 2)
        return image[..., top : top + height, left : left + width]


__all__ = ["PvtImageProcessorPil"]
