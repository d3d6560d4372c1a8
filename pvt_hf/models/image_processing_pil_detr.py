"""Image processor for DETR on Pillow and NumPy, and the post-processing that it shares with the torchvision backend."""

from typing import Any

import torch

from .image_processing_boxes import PvtBoxImageProcessorMixin, sizes_per_image, to_image_boxes
from .image_processing_pil_pvt import PvtImageProcessorPil


class PvtDetrImageProcessorMixin(PvtBoxImageProcessorMixin):
    """What both backends of the processor for DETR share: its post-processing."""

    @staticmethod
    def _backends() -> dict[str, type]:
        # Being imported here makes this file travel with the Pillow one, too.
        from .image_processing_detr import PvtDetrImageProcessor

        return {"pil": PvtDetrImageProcessorPil, "torchvision": PvtDetrImageProcessor}

    @torch.no_grad()
    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, torch.Tensor]]:
        """The objects of every image: of each query its best class that is not "no object", without suppression.

        Transformers' own method does the same, but neither clips the boxes to the image nor sorts.

        Args:
            outputs: a model's output with `logits` (batch, queries, num_labels + 1), the last class being "no object",
                of which the softmax is the score, and `pred_boxes` (batch, queries, 4), cxcywh relative to the image
                without its padding.
            threshold: lowest score, exclusive. The evaluation for AP takes all queries (0).
            target_sizes: (height, width) per image, or a (batch, 2) tensor: the boxes are in pixels of that size. None
                gives relative boxes, 0 to 1.

        Returns:
            Per image a dict with `scores` (n,) float32, highest first, `labels` (n,) int64 and `boxes` (n, 4) float32,
            xyxy, clipped to the image; n may be 0.

        Raises:
            ValueError: another number of target sizes than of images, or one that is no (height, width).
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


class PvtDetrImageProcessorPil(PvtDetrImageProcessorMixin, PvtImageProcessorPil):
    """
    Image processor for DETR on Pillow and NumPy.

    Preprocessing, settings and errors are those of `PvtDetectionImageProcessorPil`, without `nms_threshold` and
    `max_detections`; the post-processing is DETR's.
    """


__all__ = ["PvtDetrImageProcessorPil"]
