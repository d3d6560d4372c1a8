"""Image processor for DETR on torchvision. Imports without it, as `PvtImageProcessor` does."""

from .image_processing_pil_detr import PvtDetrImageProcessorMixin
from .image_processing_pvt import PvtImageProcessor


class PvtDetrImageProcessor(PvtDetrImageProcessorMixin, PvtImageProcessor):
    """
    Image processor for DETR on torchvision, on any device.

    Settings, inputs, outputs and errors are those of `PvtDetrImageProcessorPil`; `device` and `disable_grouping`
    work as in `PvtImageProcessor`. `labels` are equal in both backends and lie on the device of `pixel_values`; 8-bit
    images differ by at most two grey levels of 255.

    Raises:
        ImportError: torchvision is not installed.
    """


__all__ = ["PvtDetrImageProcessor"]
