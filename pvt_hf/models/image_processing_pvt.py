"""Image processors of the classifier, on torchvision and on Pillow. Import without torchvision."""

import json
import os
import warnings
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available

from .image_processing_backends import PvtBackendMixin, PvtPilBackend, PvtTorchvisionBackend
from .image_processing_input import decode_image, is_rgb, open_image
from .image_processing_sizes import check_pixels, resized_size


if is_torchvision_available():
    from torchvision.transforms.v2 import functional as tvF


# Defaults of Transformers' own PvtImageProcessor, for the keys that its files leave out.
NATIVE_SETTINGS = {
    "size": {"height": 224, "width": 224},
    "default_to_square": True,
    "do_center_crop": False,
    "match_native": True,
}


class PvtImageProcessorSettings(ImagesKwargs, total=False):
    """
    match_native (`bool`, defaults to False):
        Whether to give exactly the pixels of Transformers' own PvtImageProcessor. Constructor only.
    """

    match_native: bool


class PvtImageProcessorMixin(PvtBackendMixin):
    """What both backends share: settings, torchvision's size arithmetic, and files of the native class."""

    size = {"shortest_edge": 256}
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    crop_size = {"height": 224, "width": 224}
    match_native = False
    native_backend: Any  # Transformers' backend, to which the native class adds only settings

    if TYPE_CHECKING:

        def __init__(self, **kwargs: Unpack[PvtImageProcessorSettings]) -> None: ...
        def crop(self, image: Any, height: int, width: int) -> Any: ...

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> "PvtImageProcessorMixin":
        """Builds a processor from the contents of a file; `kwargs` override them.

        A file in which `do_center_crop` is missing or null was written by Transformers' own PvtImageProcessor, for PVT
        or PVTv2, and keeps that class's meaning. Files of this class always contain the key, and their `size` is a
        dict; a file with an int is therefore native too, and means a square.
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
        """As in the base class, but paths, URLs and base64 text by the native decoder if `match_native`."""
        source = image_url_or_urls
        if not (self.match_native and isinstance(source, (str, os.PathLike))):
            return super().fetch_images(source)
        source = os.fspath(source)
        if os.path.isfile(source):
            open_image(source)  # torchvision's decoder has no limit of its own
        try:
            return self.native_backend.fetch_images(source)
        except Exception as error:  # torchvision's and Pillow's decoders raise many types on damaged data
            raise ValueError(f"cannot read {source[:200]!r} as an image ({type(error).__name__}: {error}).") from error

    def check_image(self, image: Any, *settings: Any) -> tuple[Any, ChannelDimension | None]:
        """As in the base class, but `match_native` leaves images that are already open in their stored orientation."""
        if self.match_native and isinstance(image, Image.Image):
            return decode_image(image, upright=False), None
        return super().check_image(image, *settings)

    def convert_image(self, image: Any, layout: Any, *settings: Any, device: Any = None) -> Any:
        """As in the base class, but RGB images by the native backend if `match_native`."""
        if self.match_native and is_rgb(image, layout):
            return self.native_backend.process_image(
                image, do_convert_rgb=False, input_data_format=layout, device=device
            )
        return super().convert_image(image, layout, *settings, device=device)

    def resize(self, image: Any, size: SizeDict, *args: Any, **kwargs: Any) -> Any:
        """Resizes (C, H, W) or, in the torchvision backend, (N, C, H, W), by `resized_size`."""
        if self.match_native:
            try:
                return self.native_backend.resize(image, size, *args, **kwargs)
            except ValueError:
                pass  # the native class refuses floats that are neither whole numbers nor in [0, 1]
        height, width = image.shape[-2:]
        height, width = resized_size(height, width, size)
        return super().resize(image, SizeDict(height=height, width=width), *args, **kwargs)

    def center_crop(self, image: Any, size: Any, *args: Any, **kwargs: Any) -> Any:
        """Crops to (height, width) as torchvision's `CenterCrop`; smaller images are padded with black.

        The base classes round an odd margin down; torchvision rounds a half to the even number.
        """
        if not (size.height and size.width):
            raise ValueError(f"crop_size={dict(size)}; expected positive 'height' and 'width', or an int.")
        check_pixels("crop_size", size.height, size.width)
        if self.match_native:
            return self.native_backend.center_crop(image, size, *args, **kwargs)
        if size.height > image.shape[-2] or size.width > image.shape[-1]:
            warnings.warn(
                f"crop_size {size.height}x{size.width} exceeds the resized image, which is padded with black. Set "
                "crop_size or a larger size, or do_center_crop=False.",
                stacklevel=2,
            )
        return self.crop(image, size.height, size.width)


class PvtImageProcessor(PvtImageProcessorMixin, PvtTorchvisionBackend):
    """
    Image processor for PVT on torchvision, on any device.

    The defaults are the official evaluation (whai362/PVT, classification/datasets.py, `build_transform`): shorter side
    to 256 with bicubic interpolation, centre crop of 224, values divided by 255, ImageNet mean and standard deviation.
    Float images give what torchvision's transforms give on a tensor: float32 resizing, where bicubic interpolation
    overshoots at sharp edges instead of being clipped.

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
            With another number of values than one or three, images must have as many channels, and are not converted to
            RGB. They may be arrays, tensors or TIFF files (with tifffile). Integers above 255 are scaled to 8 bits as
            in RGB images; floats keep their values.
        match_native (`bool`, defaults to False): set when a file of Transformers' own PvtImageProcessor is loaded. RGB
            input then gives that class's pixels exactly: no EXIF orientation for opened images, no colour-key
            transparency, its 8-bit resizing of floats, its decoder for files.

    The call takes one image, a list, nested lists or a batch array: Pillow images of any mode; NumPy arrays and torch
    tensors (height, width), (height, width, channels) or (channels, height, width); paths, URLs, base64 text, bytes.
    `device` (in the call or the constructor) is where resizing and normalisation run; `disable_grouping` processes
    images of one size one by one instead of together.

    Returns a `BatchFeature` with `pixel_values`: float32 (batch, 3, 224, 224) for `return_tensors="pt"` or `"np"`, else
    a list of (3, 224, 224).

    Raises:
        ImportError: torchvision is not installed. (AutoImageProcessor then takes `PvtImageProcessorPil`.)
        ValueError: an empty batch, a damaged or zero-size image, NaN or infinite values, a wrong rank or channel count;
            the message names the image's position.
        TypeError: an item that is not an image.
    """

    native_backend = TorchvisionBackend() if is_torchvision_available() else None

    def crop(self, image: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The central (height, width) of (..., H, W), with zeros where the image is smaller."""
        return tvF.center_crop(image, [height, width])


class PvtImageProcessorPil(PvtImageProcessorMixin, PvtPilBackend):
    """
    Image processor for PVT on Pillow and NumPy.

    Settings, inputs, outputs and errors are those of `PvtImageProcessor`, without `device` and `disable_grouping`.
    8-bit images give exactly what torchvision's transforms give on a Pillow image. The torchvision class differs from
    that by at most two grey levels of 255: both resize in two passes, each rounded. Recent Pillow runs the vertical
    pass first for some tall images, and then differs by more (up to about 25 levels in pure noise) at edges so sharp
    that the first pass is clipped at 0 or 255.
    """

    native_backend = PilBackend()

    def crop(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """The central (height, width) of (C, H, W) by torchvision's rounding, with zeros where the image is smaller."""
        short_by = [max(height - image.shape[-2], 0), max(width - image.shape[-1], 0)]
        image = np.pad(image, [(0, 0), *((missing // 2, missing - missing // 2) for missing in short_by)])
        top, left = round((image.shape[-2] - height) / 2), round((image.shape[-1] - width) / 2)
        return image[..., top : top + height, left : left + width]


__all__ = ["PvtImageProcessor", "PvtImageProcessorPil"]
