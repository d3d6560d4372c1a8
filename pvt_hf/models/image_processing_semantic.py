"""Image processor for semantic segmentation on torchvision. Imports without it, as `PvtImageProcessor` does."""

from .image_processing_pil_semantic import PvtSemanticImageProcessorMixin
from .image_processing_pvt import PvtImageProcessor


class PvtSemanticImageProcessor(PvtSemanticImageProcessorMixin, PvtImageProcessor):
    """
    Image processor for semantic segmentation on torchvision, on any device.

    Settings, inputs, outputs and errors are those of `PvtSemanticImageProcessorPil`; `device` and `disable_grouping`
    work as in `PvtImageProcessor`. `labels` are equal in both backends and lie on the device of `pixel_values`; 8-bit
    images differ by at most four grey levels of 255, two for each of the two resizes.

    Raises:
        ImportError: torchvision is not installed.
    """


__all__ = ["PvtSemanticImageProcessor"]
