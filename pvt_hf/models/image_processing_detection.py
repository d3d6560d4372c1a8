"""Image processor for object detection on torchvision. Imports without it, as `PvtImageProcessor` does."""

from .image_processing_pil_detection import PvtDetectionImageProcessorMixin
from .image_processing_pvt import PvtImageProcessor


class PvtDetectionImageProcessor(PvtDetectionImageProcessorMixin, PvtImageProcessor):
    """
    Image processor for object detection on torchvision, on any device.

    Settings, inputs, outputs and errors are those of `PvtDetectionImageProcessorPil`; `device` and `disable_grouping`
    work as in `PvtImageProcessor`. `labels` are equal in both backends and lie on the device of `pixel_values`; 8-bit
    images differ by at most two grey levels of 255.

    Raises:
        ImportError: torchvision is not installed.
    """


__all__ = ["PvtDetectionImageProcessor"]
