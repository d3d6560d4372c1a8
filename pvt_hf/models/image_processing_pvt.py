"""Image processor for PVT on torchvision. Imports without torchvision; AutoImageProcessor then takes the Pillow one."""

from typing import Any, Unpack

import numpy as np
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import ChannelDimension
from transformers.utils import is_torchvision_available, requires_backends

from .image_processing_pil_pvt import PvtImageProcessorMixin, PvtImageProcessorSettings, is_rgb, to_channels_first


if is_torchvision_available():
    from torchvision.transforms.v2 import functional as tvF


class PvtImageProcessor(PvtImageProcessorMixin, TorchvisionBackend):
    """
    Image processor for PVT on torchvision, on any device.

    Settings, inputs, outputs and errors are those of `PvtImageProcessorPil`; `device` (in the call or the constructor)
    says where resizing and normalisation run, and `disable_grouping` whether images of one size are processed together.
    On 8-bit images the two backends differ by at most two grey levels of 255: both resize in two passes, each rounded.
    Recent Pillow runs the vertical pass first for some tall images, and then differs by more (up to about 25 levels in
    pure noise) at edges so sharp that the first pass is clipped at 0 or 255.

    Raises:
        ImportError: torchvision is not installed.
    """

    # AutoImageProcessor passes over classes marked so, and falls back to the Pillow class.
    is_dummy = not is_torchvision_available()

    def __init__(self, **kwargs: Unpack[PvtImageProcessorSettings]):
        requires_backends(self, "torchvision")
        super().__init__(**kwargs)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        do_rescale: bool | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One image as (channels, H, W), uint8 or float32, on `device` (None leaves a tensor where it is)."""
        image, layout = self.check_image(image, input_data_format, do_rescale)
        if isinstance(image, np.ndarray):
            # torch refuses negative strides and warns of read-only arrays
            image = np.require(image, requirements=["C", "W"])
        if is_rgb(image, layout) and (self.match_native or isinstance(image, torch.Tensor)):
            place = None if device is None else torch.device(device)
            image = super().process_image(image, do_convert_rgb=False, input_data_format=layout, device=place)
            return image.float() if image.is_floating_point() and not self.match_native else image
        if isinstance(image, torch.Tensor):  # grey, RGBA, bool and wide integers are converted by NumPy
            device = image.device if device is None else device
            image = image.detach().cpu()
            image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        image = to_channels_first(image, layout, do_convert_rgb, white=255.0 if do_rescale else 1.0)
        return torch.from_numpy(np.require(image, requirements="W")).to(device)

    def crop(self, image: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The central (height, width) of (..., H, W), with zeros where the image is smaller."""
        return tvF.center_crop(image, [height, width])


__all__ = ["PvtImageProcessor"]
