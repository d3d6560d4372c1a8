"""
What the image processors for boxes share: object detection, DETR and instance segmentation.

Adds to `image_processing_backends` the size rule, padding with its mask, COCO annotations and the coordinates of
predicted boxes.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import torch
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .image_processing_backends import PvtBackendMixin
from .image_processing_coco import annotation_to_labels
from .image_processing_sizes import rescaled_size


def to_image_boxes(boxes_cxcywh: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Relative (n, 4) cxcywh boxes as float32 xyxy, clipped to the image, in pixels of `size` (if None, relative)."""
    centres, sides = boxes_cxcywh.float().split(2, dim=-1)
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1).clamp(0, 1)
    if size is None:
        return boxes
    height, width = size
    return boxes * torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)


class PvtBoxImageProcessorKwargs(ImagesKwargs, total=False):
    """
    size_divisor (`int`, defaults to the processor's setting):
        The height and width of the padded batch are rounded up to multiples of this.
    return_segmentation_masks (`bool`, defaults to the processor's setting):
        Whether to add `masks` to the labels, from the `segmentation` of the annotations.
    """

    size_divisor: int | None
    return_segmentation_masks: bool | None


class PvtBoxImageProcessorMixin(PvtBackendMixin):
    """Preprocessing for detectors. The tasks' mixins derive from it and add their post-processing."""

    valid_kwargs = PvtBoxImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    size = {"shortest_edge": 800, "longest_edge": 1333}
    resample = PILImageResampling.BILINEAR
    do_center_crop = False
    crop_size = None
    do_pad = True
    size_divisor = 32
    return_segmentation_masks = False

    if TYPE_CHECKING:  # Transformers' own methods accept these arguments without declaring them

        def __init__(self, **kwargs: Unpack[PvtBoxImageProcessorKwargs]) -> None: ...
        def __call__(  # type: ignore[override]
            self, images: Any, annotations: Any = None, **kwargs: Unpack[PvtBoxImageProcessorKwargs]
        ) -> BatchFeature: ...

    def preprocess(self, images: Any, annotations: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepares images, and annotations if given; see the class for inputs, outputs and errors."""
        return super().preprocess(images, annotations, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: Any,
        annotations: Any = None,
        do_center_crop: bool | None = None,
        do_pad: bool | None = None,
        pad_size: Any = None,
        size_divisor: int | None = None,
        return_segmentation_masks: bool | None = None,
        return_tensors: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        if do_center_crop:
            raise ValueError(
                "do_center_crop=True; boxes are relative to the whole image. Pass do_center_crop=False, and crop in "
                "the training transforms."
            )
        if not do_pad:
            raise ValueError(
                "do_pad=False; a batch holds images of different sizes, and the models drop rows and columns beyond a "
                "multiple of 32. `pixel_mask` marks the padding; size_divisor=1 keeps it to a minimum."
            )
        if size_divisor is None or size_divisor < 1:
            raise ValueError(f"size_divisor={size_divisor}; expected at least 1.")
        images = self._prepare_image_like_inputs(images, **kwargs)
        originals = [(image.shape[-2], image.shape[-1]) for image in images]
        if annotations is not None:
            annotations = [annotations] if isinstance(annotations, Mapping) else list(annotations)
            if len(annotations) != len(images):
                raise ValueError(f"{len(annotations)} annotations for {len(images)} images; expected one per image.")

        unpadded = {"do_center_crop": False, "crop_size": None, "do_pad": False, "pad_size": None}
        pixels = self._preprocess(images, return_tensors=None, **{**kwargs, **unpadded})["pixel_values"]
        resized = [(image.shape[-2], image.shape[-1]) for image in pixels]
        largest: list[Any] = [pad_size.height, pad_size.width] if pad_size else [max(sides) for sides in zip(*resized)]
        height, width = (-(-side // size_divisor) * size_divisor for side in largest)  # rounded up
        padded = (height, width)
        pixels, masks = self.pad(pixels, pad_size=SizeDict(height=padded[0], width=padded[1]), return_mask=True)

        batch = BatchFeature({"pixel_values": pixels, "pixel_mask": masks}, tensor_type=return_tensors)
        if annotations is not None:
            batch["labels"] = []
            for index, sizes in enumerate(zip(originals, resized)):
                labels: dict[str, Any]
                try:
                    labels = annotation_to_labels(annotations[index], *sizes, padded, bool(return_segmentation_masks))
                except (ValueError, TypeError) as error:
                    raise ValueError(f"annotations[{index}]: {error}") from error
                if isinstance(pixels[0], torch.Tensor):
                    labels = {name: torch.from_numpy(value).to(pixels[0].device) for name, value in labels.items()}
                batch["labels"].append(BatchFeature(labels, tensor_type=return_tensors))
        return batch

    def resize(self, image: Any, size: SizeDict, *args: Any, **kwargs: Any) -> Any:
        """Resizes (..., C, H, W) by `rescaled_size`."""
        height, width = image.shape[-2:]
        height, width = rescaled_size(height, width, size)
        return super().resize(image, SizeDict(height=height, width=width), *args, **kwargs)


__all__ = ["PvtBoxImageProcessorMixin"]
