"""
What the image processors for boxes share: detection, DETR and instance segmentation, on both backends.

Reading, colour conversion, scaling and normalisation are those of `PvtImageProcessorPil`; this file adds the size rule,
padding with its mask, COCO annotations and the coordinates of predicted boxes. See `PvtDetectionImageProcessorPil` for
the settings.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .image_processing_coco import annotation_to_labels
from .image_processing_pil_pvt import PvtImageProcessorMixin, rescaled_size


def sizes_per_image(target_sizes: Any, batch: int) -> Sequence[tuple[int, int] | None]:
    """`target_sizes` (None, a list of (height, width) or a (batch, 2) tensor) as one entry per image.

    Raises:
        ValueError: another number of sizes than of images, or one that is no positive (height, width).
    """
    if target_sizes is None:
        return [None] * batch
    sizes: list[Any] = [tuple(size.tolist() if hasattr(size, "tolist") else size) for size in target_sizes]
    if len(sizes) != batch:
        raise ValueError(f"{len(sizes)} target_sizes for a batch of {batch}; expected one (height, width) per image.")
    if not all(len(size) == 2 and min(size) >= 1 for size in sizes):
        raise ValueError(f"target_sizes={sizes}; expected a positive (height, width) per image.")
    return sizes


def to_image_boxes(boxes_cxcywh: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """Relative (n, 4) cxcywh boxes as float32 xyxy, clipped to the image, in pixels of `size` (None: relative)."""
    centres, sides = boxes_cxcywh.float().split(2, dim=-1)
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1).clamp(0, 1)
    if size is None:
        return boxes
    height, width = size
    return boxes * torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)


class PvtBoxImageProcessorKwargs(ImagesKwargs, total=False):
    """
    size_divisor (`int`, defaults to the processor's setting):
        The height and width of the padded batch become multiples of it.
    return_segmentation_masks (`bool`, defaults to the processor's setting):
        Whether the labels hold `masks`, from the `segmentation` of the annotations.
    """

    size_divisor: int | None
    return_segmentation_masks: bool | None


class PvtBoxImageProcessorMixin(PvtImageProcessorMixin):
    """
    Preprocessing for detectors. Goes before a backend of `PvtImageProcessor`; the mixins of the tasks derive from it,
    and add their post-processing and `_backends`.
    """

    valid_kwargs = PvtBoxImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    size = {"shortest_edge": 800, "longest_edge": 1333}
    resample = PILImageResampling.BILINEAR
    do_center_crop = False
    crop_size = None
    do_pad = True
    size_divisor = 32
    return_segmentation_masks = False

    if TYPE_CHECKING:  # Transformers', which take these arguments too, but know nothing of them (annotations: *args)

        def __init__(self, **kwargs: Unpack[PvtBoxImageProcessorKwargs]) -> None: ...
        def __call__(  # type: ignore[override]
            self, images: Any, annotations: Any = None, **kwargs: Unpack[PvtBoxImageProcessorKwargs]
        ) -> BatchFeature: ...

    @staticmethod
    def _backends() -> dict[str, type]:
        """The classes of the task: {"pil": ..., "torchvision": ...}."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> "PvtBoxImageProcessorMixin":
        """Builds a processor from the contents of a file; `kwargs` win over them."""
        # Past the mixin of PvtImageProcessor, which reads files of the native class: there are none for these tasks.
        return super(PvtImageProcessorMixin, cls).from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings for `preprocessor_config.json`. If the code is saved along, `auto_map` names both backends."""
        settings = super().to_dict()
        auto_map = settings.pop("auto_map", None)
        if auto_map is not None and self._auto_class is not None:
            names = {
                key: f"{value.__module__.split('.')[-1]}.{value.__name__}" for key, value in self._backends().items()
            }
            settings["auto_map"] = {"AutoImageProcessor": names}
        return settings

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
                "do_pad=False; a batch holds images of different sizes, and the models leave out rows and columns "
                "beyond a multiple of 32. `pixel_mask` says what is padding; size_divisor=1 keeps it to the least."
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
            for index, annotation in enumerate(annotations):
                sizes = originals[index], resized[index], padded
                labels: dict[str, Any]
                try:
                    labels = annotation_to_labels(annotation, *sizes, with_masks=bool(return_segmentation_masks))
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
