"""
Image processor for semantic segmentation on Pillow and NumPy, and what it shares with the torchvision backend.

Reading, colour conversion, scaling and normalisation are those of `PvtImageProcessorPil`; this file adds the size rule,
the segmentation maps and the post-processing. See `PvtSemanticImageProcessorPil` for the settings.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict, is_valid_image
from transformers.processing_utils import ImagesKwargs

from .image_processing_pil_pvt import (
    PvtImageProcessorMixin,
    PvtImageProcessorPil,
    decode_image,
    dtype_name,
    flatten_batch,
    rescaled_size,
)


SIZE_DIVISOR = 32  # the stride of the last stage, which would otherwise leave out the last rows and columns
IGNORE_LABEL = 255
INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")

# Upsampled scores held at once by the post-processing: 0.25 GB of float32, whatever the number of classes.
MAX_SCORES = 2**26


def resize_steps(height: int, width: int, size: SizeDict) -> list[tuple[int, int]]:
    """The (height, width) after each of mmsegmentation's two resizes: to scale, then up to multiples of 32.

    The first is `rescaled_size` (and raises its errors), the second that of the official code
    (segmentation/align_resize.py, `AlignResize`). {"height", "width"} is one step.
    """
    scaled = rescaled_size(height, width, size)
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in scaled)  # rounded up
    aligned = (height, width)
    return [scaled, aligned] if size.shortest_edge else [aligned]


def map_to_array(segmentation_map: Image.Image | np.ndarray | torch.Tensor, do_reduce_labels: bool) -> np.ndarray:
    """One opened map as (H, W) of its own integer or bool dtype; the indices of a palette image, not its colours.

    Raises:
        ValueError: colours instead of one index per pixel, a wrong rank, no pixels, floats, negative labels, or labels
            above 255 that are to be reduced (256 would become the 255 that is ignored).
    """
    if isinstance(segmentation_map, Image.Image):
        if segmentation_map.mode not in INDEX_MODES:
            raise ValueError(
                f"a Pillow image of mode {segmentation_map.mode}; expected one class index per pixel, in mode "
                f"{', '.join(INDEX_MODES)}. Convert colours to indices first."
            )
        array = np.array(decode_image(segmentation_map, upright=True))
    elif isinstance(segmentation_map, torch.Tensor):
        if segmentation_map.is_floating_point():
            raise ValueError(f"a tensor of dtype {dtype_name(segmentation_map)}; expected integer class indices.")
        array = segmentation_map.detach().cpu().numpy()
    else:
        array = segmentation_map
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array.squeeze(0 if array.shape[0] == 1 else -1)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"an array of shape {tuple(array.shape)}; expected (height, width) with one class index per pixel, of at "
            "least one pixel. Convert colours to indices first."
        )
    if array.dtype.kind not in "uib":
        raise ValueError(f"an array of dtype {dtype_name(array)}; expected integer class indices.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ValueError(
            f"labels from {low} to {high}; expected class indices from 0, with {IGNORE_LABEL} for pixels to ignore."
        )
    if do_reduce_labels and high > IGNORE_LABEL:
        raise ValueError(
            f"label {high} with do_reduce_labels=True; expected 0..{IGNORE_LABEL}, where 0 and {IGNORE_LABEL} are "
            "ignored. Pass do_reduce_labels=False and renumber the map."
        )
    return array


def map_to_labels(array: np.ndarray, height: int, width: int, do_reduce_labels: bool) -> np.ndarray:
    """A checked (H, W) map as (height, width) int64 labels, by nearest neighbour; 0 → 255 and n → n - 1 if reduced."""
    image = Image.fromarray(array.astype(np.int32)).resize((width, height), PILImageResampling.NEAREST)
    labels = np.array(image).astype(np.int64)  # signed and wide, so that 0 - 1 does not wrap around
    if not do_reduce_labels:
        return labels
    return np.where((labels == 0) | (labels == IGNORE_LABEL), IGNORE_LABEL, labels - 1)


def best_classes(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(classes, h, w) logits to the (height, width) int64 argmax of the resized logits, a few classes at a time."""
    count = max(MAX_SCORES // (height * width), 1)
    best_scores = best = torch.empty(0)
    for first in range(0, len(logits), count):
        few = logits[None, first : first + count].float()
        resized = F.interpolate(few, size=(height, width), mode="bilinear", align_corners=False)[0]
        scores, classes = resized.max(dim=0)
        if first == 0:
            best_scores, best = scores, classes
        else:
            best = torch.where(scores > best_scores, classes + first, best)  # equal scores: the first class, as argmax
            best_scores = torch.maximum(scores, best_scores)
    return best


class PvtSemanticImageProcessorKwargs(ImagesKwargs, total=False):
    """
    do_reduce_labels (`bool`, defaults to the processor's setting):
        Whether label 0 of the segmentation maps becomes 255 (ignored), and label n becomes n - 1. 255 stays 255.
    """

    do_reduce_labels: bool | None


class PvtSemanticImageProcessorMixin(PvtImageProcessorMixin):
    """What both backends of the semantic processor share. Goes before a backend of `PvtImageProcessor`."""

    valid_kwargs = PvtSemanticImageProcessorKwargs
    size = {"shortest_edge": 512, "longest_edge": 2048}
    resample = PILImageResampling.BILINEAR
    do_center_crop = False
    crop_size = None
    do_reduce_labels = False

    if TYPE_CHECKING:  # Transformers', which take these arguments too, but know nothing of them (maps: *args)

        def __init__(self, **kwargs: Unpack[PvtSemanticImageProcessorKwargs]) -> None: ...
        def __call__(  # type: ignore[override]
            self, images: Any, segmentation_maps: Any = None, **kwargs: Unpack[PvtSemanticImageProcessorKwargs]
        ) -> BatchFeature: ...

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> "PvtSemanticImageProcessorMixin":
        """Builds a processor from the contents of a file; `kwargs` win over them."""
        # Past the mixin of PvtImageProcessor, which reads files of the native class: there are none for this task.
        return super(PvtImageProcessorMixin, cls).from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings for `preprocessor_config.json`. If the code is saved along, `auto_map` names both backends."""
        settings = super().to_dict()
        auto_map = settings.pop("auto_map", None)
        if auto_map is not None and self._auto_class is not None:
            # Being imported here makes this file travel with the Pillow one, too.
            from .image_processing_semantic import PvtSemanticImageProcessor

            classes = {"pil": PvtSemanticImageProcessorPil, "torchvision": PvtSemanticImageProcessor}
            names = {key: f"{value.__module__.split('.')[-1]}.{value.__name__}" for key, value in classes.items()}
            settings["auto_map"] = {"AutoImageProcessor": names}
        return settings

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepares images, and maps if given; see the class for inputs, outputs and errors."""
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images: Any,
        segmentation_maps: Any = None,
        do_reduce_labels: bool | None = None,
        return_tensors: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        for option in ("do_center_crop", "do_pad"):
            if kwargs[option]:
                raise ValueError(
                    f"{option}=True; the prediction must cover the whole image and nothing else, so that it can be "
                    f"resized to the image's own size. Pass {option}=False, and crop or pad in the training transforms."
                )
        images = self._prepare_image_like_inputs(images, **kwargs)
        maps = self._prepare_maps(segmentation_maps, images, bool(do_reduce_labels))
        pixels = self._preprocess(images, return_tensors=None, **kwargs)["pixel_values"]

        different = next((i for i, image in enumerate(pixels) if image.shape != pixels[0].shape), None)
        if return_tensors is not None and different is not None:
            shown = {i: "x".join(map(str, pixels[i].shape[-2:])) for i in (0, different)}
            raise ValueError(
                f"the images come out at different sizes (image 0 at {shown[0]}, image {different} at "
                f"{shown[different]}), which one tensor cannot hold. Prepare them one by one, give "
                "size={'height': ..., 'width': ...}, or leave out return_tensors for a list."
            )

        data = {"pixel_values": pixels}
        if maps is not None:
            labels = [
                map_to_labels(array, image.shape[-2], image.shape[-1], bool(do_reduce_labels))
                for array, image in zip(maps, pixels)
            ]
            is_tensor = isinstance(pixels[0], torch.Tensor)
            data["labels"] = [torch.from_numpy(m).to(pixels[0].device) for m in labels] if is_tensor else labels
        return BatchFeature(data, tensor_type=return_tensors)

    def _prepare_maps(self, segmentation_maps: Any, images: list, do_reduce_labels: bool) -> list[np.ndarray] | None:
        """Opens and checks one map per image; errors name the position, such as `segmentation_maps[2]`."""
        if segmentation_maps is None:
            return None
        if getattr(segmentation_maps, "ndim", None) == 3 and len(segmentation_maps) == len(images):
            segmentation_maps = list(segmentation_maps)
        batch = flatten_batch(segmentation_maps, "segmentation_maps")
        if len(batch) != len(images):
            raise ValueError(f"{len(batch)} segmentation_maps for {len(images)} images; expected one per image.")
        maps = []
        for (position, item), image in zip(batch, images):
            if not (is_valid_image(item) or isinstance(item, (str, bytes, os.PathLike))):
                raise TypeError(
                    f"{position}: got {type(item).__name__}; expected a Pillow image, NumPy array, torch tensor, path, "
                    "URL, base64 text or bytes, or lists of these."
                )
            try:
                array = map_to_array(self.fetch_images(item), do_reduce_labels)
            except ValueError as error:
                raise ValueError(f"{position}: {error}") from error
            if array.shape != tuple(image.shape[-2:]):
                raise ValueError(
                    f"{position} has {array.shape[0]}x{array.shape[1]} pixels (height x width), but its image "
                    f"{image.shape[-2]}x{image.shape[-1]}, upright by its EXIF orientation. Check that they belong "
                    "together; resize the map with nearest neighbour if they do."
                )
            maps.append(array)
        return maps

    def resize(self, image: Any, size: SizeDict, *args: Any, **kwargs: Any) -> Any:
        """Resizes (..., C, H, W) so that both sides are multiples of 32, by `resize_steps`."""
        for height, width in resize_steps(image.shape[-2], image.shape[-1], size):
            if tuple(image.shape[-2:]) != (height, width):
                image = super().resize(image, SizeDict(height=height, width=width), *args, **kwargs)
        return image

    @torch.no_grad()
    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Iterable[tuple[int, int]] | torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """The class of every pixel.

        Args:
            outputs: a model's output with `logits` of (batch, classes, h, w), such as `SemanticSegmenterOutput`.
            target_sizes: (height, width) per image, or a (batch, 2) tensor. The logits are resized to it (bilinear,
                align_corners=False, in float32), then compared. None gives maps at the size of the logits.

        Returns:
            One (height, width) int64 tensor of class indices per image, on the device of the logits.

        Raises:
            ValueError: another number of target sizes than of images, or one that is no (height, width).
        """
        logits = outputs.logits
        if target_sizes is None:
            return list(logits.argmax(dim=1))
        sizes = target_sizes.tolist() if hasattr(target_sizes, "tolist") else list(target_sizes)
        if len(sizes) != len(logits):
            raise ValueError(
                f"{len(sizes)} target_sizes for a batch of {len(logits)}; expected one (height, width) per image."
            )
        for size in sizes:
            if not (isinstance(size, (tuple, list, torch.Size)) and len(size) == 2 and min(size) >= 1):
                raise ValueError(f"target_sizes={sizes}; expected a positive (height, width) per image.")
        return [best_classes(image, int(height), int(width)) for image, (height, width) in zip(logits, sizes)]


class PvtSemanticImageProcessorPil(PvtSemanticImageProcessorMixin, PvtImageProcessorPil):
    """
    Image processor for semantic segmentation on Pillow and NumPy.

    The defaults are the official evaluation (PVT's segmentation/configs/_base_/datasets/ade20k.py): one factor that
    makes the shorter side 512 but the longer at most 2048, then both sides up to multiples of 32, by a second resize
    and not by padding; values divided by 255, ImageNet mean and standard deviation. Pillow's bilinear filter averages
    when it shrinks, where OpenCV's in mmcv takes single pixels: the same picture with less aliasing.

    Settings and inputs are those of `PvtImageProcessorPil`, with these differences:
        size (`int` or `dict`, defaults to `{"shortest_edge": 512, "longest_edge": 2048}`): an int is the shorter side
            without a limit; `{"height", "width"}` gives up the aspect ratio, and is rounded up to multiples of 32 too.
        resample (`PIL.Image.Resampling` or `int`, defaults to BILINEAR), for the images only.
        do_resize (`bool`, defaults to True): with False, sides should be multiples of 32 already, because the models
            leave out what is left over.
        do_center_crop, do_pad: refused; see below.
        do_reduce_labels (`bool`, defaults to False; True for ADE20K): label 0 becomes 255 (ignored), n becomes n - 1,
            255 stays 255. Never touches the image.

    The call takes images and, second, `segmentation_maps`: one map per image and of the image's size, in the same
    nesting: Pillow images of mode L, P (the indices), 1, I or I;16; integer or bool arrays and tensors of
    (height, width), also with one channel, or (batch, height, width); paths, URLs, base64 text, bytes.

    Returns a `BatchFeature` with `pixel_values`, float32 (batch, 3, H, W), and with maps `labels`, int64 (batch, H, W),
    resized directly to H x W by nearest neighbour. Without `return_tensors` both are lists, of any sizes. Images that
    come out at different sizes fit no tensor, and are refused rather than padded: the models take no mask, so that
    padding would be segmented and shift the prediction.

    Raises:
        ValueError: as `PvtImageProcessorPil`; images of different sizes with `return_tensors`; a map of another size
            than its image, with colours, floats or negative labels; another number of maps than of images.
        TypeError: an item that is no image or map.
    """


__all__ = ["PvtSemanticImageProcessorPil"]
