"""Image processors for semantic segmentation, on torchvision and on Pillow. Import without torchvision."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .image_processing_backends import PvtBackendMixin, PvtPilBackend, PvtTorchvisionBackend
from .image_processing_input import check_type, decode_image, dtype_name, flatten_batch
from .image_processing_sizes import resize_steps, sizes_per_image


IGNORE_LABEL = 255
INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")

# Upsampled scores that the post-processing holds at once, whatever the number of classes: 0.25 GB of float32.
MAX_SCORES = 2**26


def map_to_array(segmentation_map: Image.Image | np.ndarray | torch.Tensor, do_reduce_labels: bool) -> np.ndarray:
    """An opened map as (H, W) with its own integer or bool dtype. Of a palette image, the indices.

    Raises:
        ValueError: colours instead of one index per pixel, a wrong rank, no pixels, floats, negative labels, or labels
            above 255 with `do_reduce_labels` (256 would become 255, which is ignored).
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
            f"an array of shape {tuple(array.shape)}; expected (height, width) with one class index per pixel, and at "
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
    """A checked (H, W) map as (height, width) int64 labels, by nearest neighbour; if reduced, 0 → 255 and n → n - 1."""
    image = Image.fromarray(array.astype(np.int32)).resize((width, height), PILImageResampling.NEAREST)
    labels = np.array(image).astype(np.int64)  # signed and wide, so that 0 - 1 does not wrap around
    if not do_reduce_labels:
        return labels
    return np.where((labels == 0) | (labels == IGNORE_LABEL), IGNORE_LABEL, labels - 1)


def resize_logits(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(classes, h, w) to (classes, height, width), bilinear with align_corners=False, in float32."""
    return F.interpolate(logits[None].float(), size=(height, width), mode="bilinear", align_corners=False)[0]


def possible_classes(logits: torch.Tensor) -> torch.Tensor:
    """
    Indices (n,) int64 of the classes of (classes, h, w) logits that can be the best one somewhere after resizing.

    A resized pixel lies between four neighbours. A class is left out if everywhere its highest logit of the four is
    below the lowest of another class.
    """
    size = (min(logits.shape[1], 2), min(logits.shape[2], 2))
    highest = F.max_pool2d(logits, size, stride=1)
    needed = (-F.max_pool2d(-logits, size, stride=1)).amax(dim=0)
    rounding = 1e-5 * needed.abs()  # a hundred times that of the weights of a resize in float32
    return (~(highest < needed - rounding)).flatten(1).any(dim=1).nonzero()[:, 0]  # keeps NaN


def best_classes(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(classes, h, w) logits to the (height, width) int64 argmax of the resized logits, a few classes at a time.

    The logits are resized by `resize_logits`. On a CPU, only those of classes that can be the best one: of an untrained
    Semantic FPN 60 of 150.
    """
    is_cpu = logits.device.type == "cpu"
    classes = possible_classes(logits.float()) if is_cpu else torch.arange(len(logits), device=logits.device)
    count = max(MAX_SCORES // (height * width), 1)
    best_scores = best = torch.empty(0)
    for first in range(0, len(classes), count):
        scores, indices = resize_logits(logits[classes[first : first + count]], height, width).max(dim=0)
        if first == 0:
            best_scores, best = scores, indices
        else:
            best = torch.where(scores > best_scores, indices + first, best)  # of equal scores the first, as argmax
            best_scores = torch.maximum(scores, best_scores)
    return classes[best]


class PvtSemanticImageProcessorKwargs(ImagesKwargs, total=False):
    """
    do_reduce_labels (`bool`, defaults to the processor's setting):
        Whether label 0 of the segmentation maps becomes 255 (ignored), and label n becomes n - 1. 255 stays 255.
    """

    do_reduce_labels: bool | None


class PvtSemanticImageProcessorMixin(PvtBackendMixin):
    """What both backends share: settings, the size rule, segmentation maps and post-processing."""

    valid_kwargs = PvtSemanticImageProcessorKwargs
    size = {"shortest_edge": 512, "longest_edge": 2048}
    resample = PILImageResampling.BILINEAR
    do_center_crop = False
    crop_size = None
    do_reduce_labels = False

    if TYPE_CHECKING:  # Transformers' own methods accept these arguments without declaring them

        def __init__(self, **kwargs: Unpack[PvtSemanticImageProcessorKwargs]) -> None: ...
        def __call__(  # type: ignore[override]
            self, images: Any, segmentation_maps: Any = None, **kwargs: Unpack[PvtSemanticImageProcessorKwargs]
        ) -> BatchFeature: ...

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
            check_type(position, item)
            try:
                array = map_to_array(self.fetch_images(item), do_reduce_labels)
            except ValueError as error:
                raise ValueError(f"{position}: {error}") from error
            if array.shape != tuple(image.shape[-2:]):
                raise ValueError(
                    f"{position} has {array.shape[0]}x{array.shape[1]} pixels (height x width), but its image "
                    f"{image.shape[-2]}x{image.shape[-1]} after its EXIF orientation. Check that they belong together; "
                    "if they do, resize the map with nearest neighbour."
                )
            maps.append(array)
        return maps

    def resize(self, image: Any, size: SizeDict, *args: Any, **kwargs: Any) -> Any:
        """Resizes (..., C, H, W) so that both sides are multiples of 32, by `resize_steps`."""
        for height, width in resize_steps(image.shape[-2], image.shape[-1], size):
            if tuple(image.shape[-2:]) != (height, width):
                image = super().resize(image, SizeDict(height=height, width=width), *args, **kwargs)
        return image

    @overload
    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Any = None, return_segmentation_scores: Literal[False] = False
    ) -> list[torch.Tensor]: ...

    @overload
    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Any = None, *, return_segmentation_scores: Literal[True]
    ) -> list[SemanticSegmentationPostProcessorOutput]: ...

    @torch.no_grad()
    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Iterable[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """The class of every pixel.

        Args:
            outputs: a model's output with `logits` of (batch, classes, h, w), such as `SemanticSegmenterOutput`.
            target_sizes: (height, width) per image, or a (batch, 2) tensor. The logits are resized to it (bilinear,
                align_corners=False, in float32) before the argmax. None gives maps of the logits' size.
            return_segmentation_scores: also return the logits of all classes, which take num_labels * height * width *
                4 bytes per image.

        Returns:
            One (height, width) int64 tensor of class indices per image, on the device of the logits. With
            `return_segmentation_scores`, one `SemanticSegmentationPostProcessorOutput` per image: `segmentation`, that
            tensor, and `segmentation_scores` (num_labels, height, width), the logits at that size.

        Raises:
            ValueError: not one target size per image, or one that is not a positive (height, width).
        """
        sizes = sizes_per_image(target_sizes, len(outputs.logits))
        if return_segmentation_scores:
            scores = [
                logits if size is None else resize_logits(logits, int(size[0]), int(size[1]))
                for logits, size in zip(outputs.logits, sizes)
            ]
            return [
                SemanticSegmentationPostProcessorOutput(
                    {"segmentation": image.argmax(dim=0), "segmentation_scores": image}
                )
                for image in scores
            ]
        return [
            logits.argmax(dim=0) if size is None else best_classes(logits, int(size[0]), int(size[1]))
            for logits, size in zip(outputs.logits, sizes)
        ]


class PvtSemanticImageProcessor(PvtSemanticImageProcessorMixin, PvtTorchvisionBackend):
    """
    Image processor for semantic segmentation on torchvision, on any device.

    The defaults are the official evaluation (PVT's segmentation/configs/_base_/datasets/ade20k.py): one factor that
    makes the shorter side 512 but the longer at most 2048, then both sides up to multiples of 32, by a second resize
    and not by padding; values divided by 255, ImageNet mean and standard deviation. The bilinear filter averages when
    it shrinks, where OpenCV's in mmcv samples single pixels: the same picture with less aliasing.

    Settings and inputs are those of `PvtImageProcessor` without `match_native`, with these differences:
        size (`int` or `dict`, defaults to `{"shortest_edge": 512, "longest_edge": 2048}`): an int is the shorter side
            without a limit on the longer; `{"max_height", "max_width"}` is the largest size within both;
            `{"height", "width"}` gives up the aspect ratio. All are rounded up to multiples of 32.
        resample (`PIL.Image.Resampling` or `int`, defaults to BILINEAR), for the images only.
        do_resize (`bool`, defaults to True): with False, sides should be multiples of 32 already, because the models
            drop the remaining rows and columns.
        do_center_crop, do_pad: refused; see below.
        do_reduce_labels (`bool`, defaults to False; True for ADE20K): label 0 becomes 255 (ignored), n becomes n - 1,
            255 stays 255. Never changes the image.

    The call takes images and, second, `segmentation_maps`: one map per image, of the image's size and in the same
    nesting: Pillow images of mode L, P (the indices), 1, I or I;16; integer or bool arrays and tensors of
    (height, width), also with one channel, or (batch, height, width); paths, URLs, base64 text, bytes.

    Returns a `BatchFeature` with `pixel_values`, float32 (batch, 3, H, W), and with maps `labels`, int64 (batch, H, W),
    resized directly to H x W by nearest neighbour, on the device of `pixel_values`. Without `return_tensors` both are
    lists, whose sizes may differ. With it, images that come out at different sizes are refused rather than padded: the
    models take no mask, so that padding would be segmented and change the prediction.

    Raises:
        ImportError: torchvision is not installed. (AutoImageProcessor then takes `PvtSemanticImageProcessorPil`.)
        ValueError: as `PvtImageProcessor`; images of different sizes with `return_tensors`; a map of another size than
            its image, with colours, floats or negative labels; not one map per image.
        TypeError: an item that is not an image or map.
    """


class PvtSemanticImageProcessorPil(PvtSemanticImageProcessorMixin, PvtPilBackend):
    """
    Image processor for semantic segmentation on Pillow and NumPy.

    Settings, inputs, outputs and errors are those of `PvtSemanticImageProcessor`, without `device` and
    `disable_grouping`. `labels` are equal in both backends; 8-bit images differ by at most four grey levels of 255, two
    for each of the two resizes.
    """


__all__ = ["PvtSemanticImageProcessor", "PvtSemanticImageProcessorPil"]
