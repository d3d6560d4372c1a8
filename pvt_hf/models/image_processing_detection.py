"""
Image processors for object detectors with one sigmoid score per class (RetinaNet), on torchvision and on Pillow. Import
without torchvision, which only non-maximum suppression needs.
"""

from typing import Any, Unpack

import torch
from transformers.utils import is_torchvision_available

from .image_processing_backends import PvtPilBackend, PvtTorchvisionBackend
from .image_processing_boxes import PvtBoxImageProcessorKwargs, PvtBoxImageProcessorMixin, to_image_boxes
from .image_processing_sizes import sizes_per_image


if is_torchvision_available():
    from torchvision.ops import batched_nms
else:
    batched_nms = None


def best_after_nms(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, iou_threshold: float, count: int
) -> torch.Tensor:
    """
    The `count` best boxes that non-maximum suppression within each class keeps.

    Whether a box is kept depends on better boxes only. So the best `10 * count` boxes are enough if they leave `count`;
    if not, four times as many are tried. At threshold 0, 5,000 candidates of 80 classes took 5.5 s otherwise, 80
    suppressions of all candidates.

    Args:
        boxes: (n, 4) float32, xyxy.
        scores: (n,) float32.
        labels: (n,) int64.

    Returns:
        Indices (at most `count`,) int64, best first, of equal scores the first.
    """
    order = scores.sort(descending=True, stable=True).indices
    tried = 10 * count
    while True:
        best = order[:tried]
        # batched_nms offsets the boxes of each class, which would cost float32 coordinates their last digits
        kept = batched_nms(boxes[best].double(), scores[best].double(), labels[best], iou_threshold).sort().values
        if len(kept) >= count or tried >= len(order):
            return best[kept[:count]]
        tried *= 4


class PvtDetectionImageProcessorMixin(PvtBoxImageProcessorMixin):
    """What both backends share: settings and post-processing."""

    nms_threshold: float
    max_detections: int

    def __init__(
        self, *, nms_threshold: float = 0.5, max_detections: int = 100, **kwargs: Unpack[PvtBoxImageProcessorKwargs]
    ):
        settings: dict[str, Any] = {"nms_threshold": nms_threshold, "max_detections": max_detections}
        super().__init__(**settings, **kwargs)

    @torch.no_grad()
    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, torch.Tensor]]:
        """The objects of each image, by non-maximum suppression within each class (mmdetection's `multiclass_nms`).

        Each pair of a candidate and a class whose score exceeds `threshold` takes part, so that one candidate may give
        several objects. The paper's evaluation uses threshold=0.05.

        Args:
            outputs: a model's output with `logits` (batch, candidates, num_labels), whose sigmoid is the score, and
                `pred_boxes` (batch, candidates, 4), cxcywh relative to the image without its padding.
            threshold: lowest score, exclusive.
            target_sizes: (height, width) per image, or a (batch, 2) tensor: boxes are in pixels of that size. None
                gives relative boxes, 0 to 1.

        Returns:
            Per image a dict with `scores` (n,) float32, highest first, `labels` (n,) int64 and `boxes` (n, 4) float32,
            xyxy, clipped to the image; n is at most `max_detections`, and may be 0.

        Raises:
            ImportError: torchvision is not installed.
            ValueError: not one target size per image, or one that is not a positive (height, width).
        """
        if batched_nms is None:
            raise ImportError("Non-maximum suppression needs torchvision: `pip install torchvision`.")
        results = []
        for logits, pred_boxes, size in zip(
            outputs.logits, outputs.pred_boxes, sizes_per_image(target_sizes, len(outputs.logits))
        ):
            scores = logits.float().sigmoid()
            candidates, labels = (scores > threshold).nonzero(as_tuple=True)
            scores, boxes = scores[candidates, labels], to_image_boxes(pred_boxes[candidates], size)
            keep = best_after_nms(boxes, scores, labels, self.nms_threshold, self.max_detections)
            results.append({"scores": scores[keep], "labels": labels[keep], "boxes": boxes[keep]})
        return results


class PvtDetectionImageProcessor(PvtDetectionImageProcessorMixin, PvtTorchvisionBackend):
    """
    Image processor for object detection on torchvision, on any device.

    The defaults are the paper's evaluation, as in mmdetection: one factor that makes the shorter side 800 but the
    longer at most 1333, values divided by 255, ImageNet mean and standard deviation, then zeros on the right and below
    up to the largest image of the batch and a multiple of 32. The bilinear filter averages when it shrinks, where
    OpenCV's in mmcv samples single pixels: the same picture with less aliasing.

    Settings and inputs are those of `PvtImageProcessor` without `match_native`, with these differences:
        size (`int` or `dict`, defaults to `{"shortest_edge": 800, "longest_edge": 1333}`): an int is the shorter side
            without a limit on the longer; `{"max_height", "max_width"}` is the largest size within both;
            `{"height", "width"}` gives up the aspect ratio.
        resample (`PIL.Image.Resampling` or `int`, defaults to BILINEAR), for the images only.
        size_divisor (`int`, defaults to 32): height and width of the batch are rounded up to multiples of this.
        pad_size (`dict`, defaults to None): `{"height", "width"}` to pad to instead of the largest image, rounded up.
        return_segmentation_masks (`bool`, defaults to False): whether to add masks to the labels.
        do_center_crop=True and do_pad=False are refused.
        nms_threshold (`float`, defaults to 0.5), max_detections (`int`, defaults to 100): for the post-processing, in
            the constructor only. Of two boxes of one class with a higher IoU than the threshold, the better one is
            kept; an image has at most `max_detections` objects.

    The call takes images and, second, `annotations`: a list of one dict per image (or one dict), as in Transformers'
    DETR processor: `{"image_id": int, "annotations": [{"bbox": [x, y, width, height], "category_id": int}, ...]}`, in
    pixels of the upright image. `category_id` is used as the label: classes count from 0 without gaps. Optional keys of
    an object are `area` (default: that of the box), `iscrowd`, and `segmentation` (polygons or RLE), which masks need.

    Returns a `BatchFeature` with `pixel_values`, float32 (batch, 3, H, W), `pixel_mask`, int64 (batch, H, W), 1 in the
    image and 0 in the padding, and with annotations `labels`, one `BatchFeature` per image, on the device of
    `pixel_values`:
        class_labels (n,) int64; boxes (n, 4) float32, cxcywh relative to the image *without* its padding; area (n,)
        float32, in pixels of the resized image; iscrowd (n,), always 0; image_id (1,); orig_size and size (2,),
        (height, width) before and after resizing, without padding; masks (n, H, W) bool, if asked for.
    (Transformers' own DETR processor makes boxes relative to the padded image, and `size` that of the padded image.)
    The objects are those that `clean_objects` keeps.

    Raises:
        ImportError: torchvision is not installed (AutoImageProcessor then takes `PvtDetectionImageProcessorPil`), or
            masks are asked for and pycocotools is not installed.
        ValueError: as `PvtImageProcessor`; not one annotation per image, missing keys, NaN, negative sides or labels,
            masks asked for without a segmentation or with one of another size.
        TypeError: an item that is not an image.
    """


class PvtDetectionImageProcessorPil(PvtDetectionImageProcessorMixin, PvtPilBackend):
    """
    Image processor for object detection on Pillow and NumPy.

    Settings, inputs, outputs and errors are those of `PvtDetectionImageProcessor`, without `device` and
    `disable_grouping`. `labels` are equal in both backends; 8-bit images differ by at most two grey levels of 255.
    """


__all__ = ["PvtDetectionImageProcessor", "PvtDetectionImageProcessorPil"]
