"""Image processors for instance segmentation (Mask R-CNN), on torchvision and on Pillow. Import without torchvision."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from .image_processing_backends import PvtPilBackend, PvtTorchvisionBackend
from .image_processing_boxes import PvtBoxImageProcessorMixin, to_image_boxes
from .image_processing_sizes import sizes_per_image


def paste_mask(
    mask_logits: torch.Tensor, box_xyxy: tuple[float, ...], height: int, width: int, threshold: float
) -> tuple[slice, slice, torch.Tensor]:
    """Resamples a mask from the grid of its box to the pixels of the image.

    The probabilities are sampled bilinearly at the pixel centres within the box. A grid cell has its value at its
    centre; outside the grid the probability is zero (as in mmdetection and detectron2: `grid_sample`,
    align_corners=False).

    Args:
        mask_logits: (h, w), 28x28 in Mask R-CNN.
        box_xyxy: in pixels of the image.
        height, width: size of the image.
        threshold: lowest probability that counts as mask, inclusive.

    Returns:
        The image rows and columns whose centres lie in the box, and the (rows, columns) bool mask there; all may be
        empty.
    """
    x0, y0, x1, y1 = box_xyxy
    axes, samples = [], []
    for low, high, length in ((y0, y1, height), (x0, x1, width)):
        first = max(math.ceil(low - 0.5), 0)
        last = min(math.floor(high - 0.5) + 1, length) if high > low else first  # exclusive
        axes.append(slice(first, max(first, last)))
        centres = torch.arange(axes[-1].start, axes[-1].stop, device=mask_logits.device) + 0.5
        samples.append((centres - low) / max(high - low, 1e-12) * 2 - 1)
    rows, columns = axes
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    if 0 in shape:
        return rows, columns, torch.zeros(shape, dtype=torch.bool, device=mask_logits.device)
    grid = torch.stack([samples[1].expand(shape), samples[0][:, None].expand(shape)], dim=-1)
    probabilities = mask_logits[None, None].float().sigmoid()
    sampled = F.grid_sample(probabilities, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return rows, columns, sampled[0, 0] >= threshold


class PvtInstanceImageProcessorMixin(PvtBoxImageProcessorMixin):
    """What both backends share: the post-processing."""

    def _detections(self, outputs: Any, threshold: float, target_sizes: Any) -> list[dict[str, torch.Tensor]]:
        """Per image the detections above `threshold`, best first; `rows` are their indices in the outputs."""
        found = []
        for scores, labels, pred_boxes, count, size in zip(
            outputs.pred_scores,
            outputs.pred_labels,
            outputs.pred_boxes,
            outputs.num_detections.tolist(),
            sizes_per_image(target_sizes, len(outputs.pred_scores)),
        ):
            order = scores[:count].argsort(descending=True, stable=True)
            rows = order[scores[order] > threshold]
            boxes = to_image_boxes(pred_boxes[rows], size)
            found.append({"scores": scores[rows].float(), "labels": labels[rows], "boxes": boxes, "rows": rows})
        return found

    @torch.no_grad()
    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, torch.Tensor]]:
        """The objects of each image. The model has suppressed overlapping boxes already.

        Args:
            outputs: a model's output with `pred_scores` (batch, detections), `pred_labels` (batch, detections) int64,
                `pred_boxes` (batch, detections, 4), cxcywh relative to the image without its padding, and
                `num_detections` (batch,), the number of detections before each image's padding.
            threshold: lowest score, exclusive.
            target_sizes: (height, width) per image, or a (batch, 2) tensor: boxes are in pixels of that size. None
                gives relative boxes, 0 to 1.

        Returns:
            Per image a dict with `scores` (n,) float32, highest first, `labels` (n,) int64 and `boxes` (n, 4) float32,
            xyxy, clipped to the image; n may be 0.

        Raises:
            ValueError: not one target size per image, or one that is not a positive (height, width).
        """
        found = self._detections(outputs, threshold, target_sizes)
        return [{name: image[name] for name in ("scores", "labels", "boxes")} for image in found]

    @torch.no_grad()
    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Any = None,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """The objects of each image as masks of the image's size.

        Args:
            outputs: as for `post_process_object_detection`, plus `pred_masks` (batch, detections, h, w): the mask
                logits of each detection's class on a grid over its box.
            threshold: lowest score, exclusive.
            mask_threshold: lowest probability that counts as mask, inclusive.
            overlap_mask_area_threshold: where masks overlap, the pixels go to the one with the higher score; a mask
                that keeps this share of its pixels or less is dropped. Not used for binary maps.
            target_sizes: (height, width) per image, or a (batch, 2) tensor: the size of the masks. Required, because
                the outputs hold masks relative to their boxes.
            return_binary_maps: return one mask per object, which may overlap, as AP needs them.

        Returns:
            Per image a dict with
                segmentation: (height, width) int32, the `id` of the object at each pixel, from 1, and 0 for none. With
                    `return_binary_maps` (n, height, width) bool, the masks of the n objects that
                    `post_process_object_detection` returns, in the same order; `segmentation[id]` is an object's mask.
                segments_info: list, highest score first, of dicts with `id`, `label_id`, `score` and `was_fused`, which
                    is always False, as in Transformers.

        Raises:
            ValueError: no target sizes, not one per image, or one that is not a positive (height, width).
        """
        if target_sizes is None:
            raise ValueError(
                "target_sizes is None; expected the (height, width) of each image, as masks are relative to boxes."
            )
        sizes = sizes_per_image(target_sizes, len(outputs.pred_scores))
        results = []
        for found, pred_masks, size in zip(
            self._detections(outputs, threshold, target_sizes), outputs.pred_masks, sizes
        ):
            assert size is not None  # since there are target_sizes
            height, width = map(int, size)
            device, count = pred_masks.device, len(found["rows"])
            if return_binary_maps:
                segmentation = torch.zeros((count, height, width), dtype=torch.bool, device=device)
            else:
                segmentation = torch.zeros((height, width), dtype=torch.int32, device=device)
            segments: list[dict[str, Any]] = []
            for index, (row, label, score, box) in enumerate(
                zip(*(found[name].tolist() for name in ("rows", "labels", "scores", "boxes")))
            ):
                # one at a time and within its box, so that memory does not grow with the number of objects
                rows, columns, mask = paste_mask(pred_masks[row], box, height, width, mask_threshold)
                if return_binary_maps:
                    segment_id = index
                    segmentation[index, rows, columns] = mask
                else:
                    segment_id = len(segments) + 1
                    region = segmentation[rows, columns]  # a view
                    visible = mask & (region == 0)
                    area, remaining = int(mask.sum()), int(visible.sum())
                    if remaining == 0 or remaining <= overlap_mask_area_threshold * area:
                        continue
                    region[visible] = segment_id
                segments.append({"id": segment_id, "label_id": label, "score": score, "was_fused": False})
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results


class PvtInstanceImageProcessor(PvtInstanceImageProcessorMixin, PvtTorchvisionBackend):
    """
    Image processor for instance segmentation on torchvision, on any device.

    Preprocessing, settings and errors are those of `PvtDetectionImageProcessor`, without `nms_threshold` and
    `max_detections`, which the model applies itself. Training on masks needs return_segmentation_masks=True.
    """


class PvtInstanceImageProcessorPil(PvtInstanceImageProcessorMixin, PvtPilBackend):
    """
    Image processor for instance segmentation on Pillow and NumPy.

    Differs from `PvtInstanceImageProcessor` as `PvtDetectionImageProcessorPil` does from its torchvision class.
    """


__all__ = ["PvtInstanceImageProcessor", "PvtInstanceImageProcessorPil"]
