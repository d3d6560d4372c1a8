"""Image processors for DETR, on torchvision and on Pillow. Import without torchvision."""

from typing import Any

import torch

from .image_processing_backends import PvtPilBackend, PvtTorchvisionBackend
from .image_processing_boxes import PvtBoxImageProcessorMixin, to_image_boxes
from .image_processing_sizes import sizes_per_image


class PvtDetrImageProcessorMixin(PvtBoxImageProcessorMixin):
    """What both backends share: the post-processing."""

    @torch.no_grad()
    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, torch.Tensor]]:
        """The objects of each image: for each query its best class other than "no object", without suppression.

        Transformers' own method does the same, but neither clips the boxes to the image nor sorts.

        Args:
            outputs: a model's output with `logits` (batch, queries, num_labels + 1), whose softmax is the score and
                whose last class is "no object", and `pred_boxes` (batch, queries, 4), cxcywh relative to the image
                without its padding.
            threshold: lowest score, exclusive. The evaluation for AP keeps all queries (0).
            target_sizes: (height, width) per image, or a (batch, 2) tensor: boxes are in pixels of that size. None
                gives relative boxes, 0 to 1.

        Returns:
            Per image a dict with `scores` (n,) float32, highest first, `labels` (n,) int64 and `boxes` (n, 4) float32,
            xyxy, clipped to the image; n may be 0.

        Raises:
            ValueError: not one target size per image, or one that is not a positive (height, width).
        """
        all_scores, all_labels = outputs.logits.float().softmax(dim=-1)[..., :-1].max(dim=-1)
        results = []
        for scores, labels, pred_boxes, size in zip(
            all_scores, all_labels, outputs.pred_boxes, sizes_per_image(target_sizes, len(all_scores))
        ):
            order = scores.argsort(descending=True, stable=True)
            keep = order[scores[order] > threshold]
            boxes = to_image_boxes(pred_boxes[keep], size)
            results.append({"scores": scores[keep], "labels": labels[keep], "boxes": boxes})
        return results


class PvtDetrImageProcessor(PvtDetrImageProcessorMixin, PvtTorchvisionBackend):
    """
    Image processor for DETR on torchvision, on any device.

    Preprocessing, settings and errors are those of `PvtDetectionImageProcessor`, without `nms_threshold` and
    `max_detections`; the post-processing is DETR's.
    """


class PvtDetrImageProcessorPil(PvtDetrImageProcessorMixin, PvtPilBackend):
    """
    Image processor for DETR on Pillow and NumPy.

    Differs from `PvtDetrImageProcessor` as `PvtDetectionImageProcessorPil` does from its torchvision class.
    """


__all__ = ["PvtDetrImageProcessor", "PvtDetrImageProcessorPil"]
