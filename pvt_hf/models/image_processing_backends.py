"""
The two backends that the image processors of all tasks build on: Transformers' own, torchvision and Pillow, with the
input handling of `image_processing_input`. Imports without torchvision.
"""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ChannelDimension, SizeDict
from transformers.utils import is_torchvision_available, requires_backends

from .configuration_finite import check_finite_fields
from .image_processing_bands import CHANNEL_COUNTS, channel_counts, is_tiff, read_bands
from .image_processing_input import (
    check_array,
    check_type,
    decode_image,
    flatten_batch,
    is_rgb,
    open_image,
    to_channels_first,
    to_numpy,
)


def check_numbers(fields: Mapping[str, Any]) -> None:
    """Raises a ValueError for settings of an image processor that are no finite numbers, or that divide by zero."""
    check_finite_fields(fields)
    for name in ("image_mean", "image_std", "rescale_factor"):
        value = fields.get(name)
        if any(isinstance(number, str) for number in (value if isinstance(value, (list, tuple)) else [value])):
            raise ValueError(f"{name} must be a number, or numbers, got {value!r}.")
    if fields.get("rescale_factor") == 0:
        raise ValueError("rescale_factor must not be 0.")


class PvtBackendMixin(BaseImageProcessor):
    """What all image processors of both backends share: common settings, reading of images, saving."""

    do_convert_rgb = True
    do_resize = True
    default_to_square = False  # an int as size is the shorter side, as in torchvision and mmcv
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    if TYPE_CHECKING:  # Transformers' backends define these

        def resize(self, image: Any, size: SizeDict, *args: Any, **kwargs: Any) -> Any: ...
        def pad(self, images: Any, *args: Any, **kwargs: Any) -> Any: ...

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class. Raises a ValueError if a number is NaN or infinite, among the `kwargs` too."""
        check_numbers({**image_processor_dict, **kwargs})
        return super().from_dict(image_processor_dict, **kwargs)

    def _set_attributes(self, **kwargs: Any) -> None:
        check_numbers({**vars(self), **kwargs})
        super()._set_attributes(**kwargs)

    def _validate_preprocess_kwargs(self, *args: Any, **kwargs: Any) -> None:
        check_numbers(kwargs)
        super()._validate_preprocess_kwargs(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings for `preprocessor_config.json`. If the code is saved along, `auto_map` names both backends."""
        settings = super().to_dict()
        auto_map = settings.pop("auto_map", None)
        if auto_map is not None and self._auto_class is not None:
            module, name = type(self).__module__, type(self).__name__.removesuffix("Pil")
            if hasattr(sys.modules[module], name) and hasattr(sys.modules[module], f"{name}Pil"):
                file = module.rpartition(".")[2]
                auto_map = {self._auto_class: {"pil": f"{file}.{name}Pil", "torchvision": f"{file}.{name}"}}
            settings["auto_map"] = auto_map
        return settings

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens paths, URLs, base64 text and file contents (bytes), also in lists; returns images unchanged.

        Raises:
            ValueError: a source that cannot be read as an image.
        """
        source = image_url_or_urls
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        return open_image(source) if isinstance(source, (str, bytes)) else super().fetch_images(source)

    def _prepare_image_like_inputs(self, images: Any, *args: Any, expected_ndims: int = 3, **kwargs: Any) -> list:
        """Flattens the batch and prepares each image; errors name the position, such as `images[2]`."""
        batch = flatten_batch(images)
        if not batch:
            raise ValueError("no image was given (an empty list or batch); expected at least one.")
        # TIFF files of other channels than Pillow's
        with_bands = channel_counts(kwargs.get("image_mean")) != CHANNEL_COUNTS
        prepared = []
        for position, image in batch:
            check_type(position, image)
            try:
                image = read_bands(image) if with_bands and is_tiff(image) else self.fetch_images(image)
                prepared.append(self.process_image(image, *args, **kwargs))
            except ValueError as error:
                raise ValueError(f"{position}: {error}") from error
        return prepared

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        do_rescale: bool | None = None,
        image_mean: Any = None,
        **kwargs: Any,
    ) -> Any:
        """One image as (channels, H, W), uint8 or float32, an array or tensor as the backend works on."""
        counts = channel_counts(image_mean)
        do_convert_rgb = do_convert_rgb and counts == CHANNEL_COUNTS
        image, layout = self.check_image(image, input_data_format, do_rescale, counts)
        image = self.convert_image(image, layout, do_convert_rgb, 255.0 if do_rescale else 1.0, device=device)
        if image.shape[0] not in counts:
            raise ValueError(f"an image of {image.shape[0]} channels; expected {counts[0]}, as image_mean has.")
        return image

    def check_image(
        self,
        image: Any,
        input_data_format: str | ChannelDimension | None,
        do_rescale: bool | None,
        counts: tuple[int, ...] = CHANNEL_COUNTS,
    ) -> tuple[Any, ChannelDimension | None]:
        """The decoded, upright image and its channel layout (None for Pillow and (H, W) images).

        Raises:
            ValueError: see `decode_image` and `check_array`.
        """
        if isinstance(image, Image.Image):
            return decode_image(image, upright=True), None
        return image, check_array(image, input_data_format, do_rescale, counts)

    def convert_image(
        self,
        image: Any,
        layout: ChannelDimension | None,
        do_convert_rgb: bool | None,
        white: float,
        *,
        device: "str | torch.device | None" = None,
    ) -> Any:
        """A checked image as (channels, H, W), by the rules of `to_channels_first`. Each backend has its own."""
        raise NotImplementedError


class PvtTorchvisionBackend(PvtBackendMixin, TorchvisionBackend):
    """Works on tensors, on any device."""

    # AutoImageProcessor skips classes marked as dummy and takes the Pillow class instead.
    is_dummy = not is_torchvision_available()

    def __init__(self, **kwargs: Any):
        requires_backends(self, "torchvision")
        super().__init__(**kwargs)

    def check_image(self, image: Any, *settings: Any) -> tuple[Any, ChannelDimension | None]:
        image, layout = super().check_image(image, *settings)
        if isinstance(image, np.ndarray):
            # torch refuses negative strides and warns about read-only arrays
            image = np.require(image, requirements=["C", "W"])
        return image, layout

    def convert_image(
        self,
        image: Any,
        layout: ChannelDimension | None,
        do_convert_rgb: bool | None,
        white: float,
        *,
        device: "str | torch.device | None" = None,
    ) -> torch.Tensor:
        """See the base class. None as device leaves a tensor where it is."""
        if isinstance(image, torch.Tensor):
            device = image.device if device is None else device
            if is_rgb(image, layout):  # stays a tensor, which may be on a GPU
                image = image if layout == ChannelDimension.FIRST else image.permute(2, 0, 1)
                image = image.contiguous().to(device)
                return image.float() if image.is_floating_point() else image
            image = to_numpy(image)
        array = to_channels_first(image, layout, do_convert_rgb, white)
        return torch.from_numpy(np.require(array, requirements="W")).to(device)


class PvtPilBackend(PvtBackendMixin, PilBackend):
    """Works on NumPy arrays, and resizes with Pillow."""

    def check_image(self, image: Any, *settings: Any) -> tuple[Any, ChannelDimension | None]:
        return super().check_image(to_numpy(image) if isinstance(image, torch.Tensor) else image, *settings)

    def convert_image(self, image: Any, layout: Any, *settings: Any, device: Any = None) -> np.ndarray:
        return to_channels_first(image, layout, *settings)

    def resize(self, image: Any, size: Any, resample: Any = None, *args: Any, **kwargs: Any) -> Any:
        """
        Resizes (C, H, W) to a height and width. Floats, for which Transformers uses 8 bits, and images that Pillow has
        no mode for are resized channel by channel.
        """
        if image.dtype == np.uint8 and len(image) in CHANNEL_COUNTS:
            return super().resize(image, size, resample, *args, **kwargs)
        dtype = np.uint8 if image.dtype == np.uint8 else np.float32
        channels = [Image.fromarray(np.ascontiguousarray(channel, dtype=dtype)) for channel in image]
        return np.stack([np.array(channel.resize((size.width, size.height), resample)) for channel in channels])


__all__ = ["PvtBackendMixin", "PvtPilBackend", "PvtTorchvisionBackend"]
