"""
Region proposals (Faster R-CNN, arXiv 1506.01497) on a feature pyramid: the first stage of Mask R-CNN.

Follows mmdetection's `RPNHead` and its training in the official configuration
`detection/configs/_base_/models/mask_rcnn_r50_fpn.py` of https://github.com/whai362/PVT. Uses torchvision's sampler,
box coder and NMS, but not its region proposal network, which has other anchors, another assignment (see
`modeling_anchors.py`) and a smooth L1 box loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.utils import is_torchvision_available

from .configuration_mask_rcnn import MaskRcnnConfig
from .modeling_anchors import IGNORED, AnchorGrid, assign_to_objects, box_coder, clip_to_image
from .modeling_fixed_regions import fixed_proposals


if is_torchvision_available():
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
    from torchvision.ops import batched_nms

FIRST_STRIDE = 4
NUM_LEVELS = 5
POSITIVE_SHARE = 0.5


class RegionProposalNetwork(nn.Module):
    """
    A 3x3 convolution and two 1x1 convolutions, shared by all levels. They predict for each anchor whether it is an
    object, and the offset to the object's box.
    """

    def __init__(self, config: MaskRcnnConfig):
        super().__init__()
        strides = [FIRST_STRIDE * 2**level for level in range(NUM_LEVELS)]
        self.config = config
        self.anchors = AnchorGrid(strides, [[stride * config.anchor_scale] for stride in strides], config.anchor_ratios)
        channels, anchors_per_cell = config.fpn_channels, self.anchors.anchors_per_cell
        self.convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.classifier = nn.Conv2d(channels, anchors_per_cell, kernel_size=1)
        self.box_regressor = nn.Conv2d(channels, anchors_per_cell * 4, kernel_size=1)

    def forward(
        self,
        feature_maps: list[torch.Tensor],
        image_sizes: torch.Tensor,
        objects: list[torch.Tensor] | None = None,
    ) -> tuple[Any, dict[str, torch.Tensor] | None]:
        """
        Args:
            feature_maps: five maps (batch, fpn_channels, rows_i, columns_i), strides 4 to 64.
            image_sizes: (batch, 2), (height, width) in pixels, without padding.
            objects: for each image (objects, 4), xyxy in pixels, to compute losses; None otherwise.

        Returns:
            Proposals, for each image (at most num_proposals, 4) fp32, xyxy in pixels, highest score first, without
            gradient; and `loss_rpn_classification` and `loss_rpn_box`, fp32 scalars, or None without `objects`.
        """
        logits, codes = [], []
        for feature_map in feature_maps:
            hidden = nn.functional.relu(self.convolution(feature_map))
            logits.append(self.classifier(hidden).permute(0, 2, 3, 1).flatten(1))  # (batch, anchors)
            codes.append(self.box_regressor(hidden).permute(0, 2, 3, 1).unflatten(-1, (-1, 4)).flatten(1, 3))
        anchors = self.anchors(feature_maps)
        inside = self.anchors.inside(feature_maps, image_sizes)
        if torch.compiler.is_exporting():
            return fixed_proposals(self.config, logits, codes, anchors, inside, image_sizes), None
        proposals = self.proposals(logits, codes, anchors, inside, image_sizes)
        if objects is None:
            return proposals, None
        return proposals, self.losses(
            torch.cat(logits, dim=1), torch.cat(codes, dim=1), torch.cat(anchors), inside, objects
        )

    @torch.no_grad()
    def proposals(
        self,
        logits: list[torch.Tensor],
        codes: list[torch.Tensor],
        anchors: list[torch.Tensor],
        inside: torch.Tensor,
        image_sizes: torch.Tensor,
    ) -> list[torch.Tensor]:
        """For each image, the boxes of the highest-scoring anchors of each level, after NMS within the level."""
        limit = self.config.num_train_candidates if self.training else self.config.num_candidates
        coder, proposals = box_coder(), []
        inside_by_level = inside.split([len(level) for level in anchors], dim=1)
        for index, image_size in enumerate(image_sizes):
            level_boxes, level_scores, level_numbers = [], [], []
            for level, level_anchors in enumerate(anchors):
                score = logits[level][index].float().masked_fill(~inside_by_level[level][index], -torch.inf)
                score, best = score.topk(min(limit, len(score)))
                box = coder.decode_single(codes[level][index][best].float(), level_anchors[best])
                level_boxes.append(clip_to_image(box, image_size))
                level_scores.append(score)
                level_numbers.append(torch.full_like(best, level))
            boxes, scores, levels = torch.cat(level_boxes), torch.cat(level_scores), torch.cat(level_numbers)
            if not self.training:  # in training, the loss tells
                check_scores(scores)
            usable = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1) & (scores > -torch.inf)
            boxes, scores, levels = boxes[usable], scores[usable], levels[usable]
            kept = batched_nms(boxes, scores, levels, self.config.rpn_nms_threshold)
            proposals.append(boxes[kept[: self.config.num_proposals]])
        return proposals

    def losses(
        self,
        logits: torch.Tensor,
        codes: torch.Tensor,
        anchors: torch.Tensor,
        inside: torch.Tensor,
        objects: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Binary cross-entropy and L1 loss over a sample of anchors, both divided by the size of the sample."""
        sampler = BalancedPositiveNegativeSampler(self.config.rpn_num_samples, POSITIVE_SHARE)
        coder, objects_of, sampled_of, targets = box_coder(), [], [], []
        for image_objects, is_inside in zip(objects, inside):
            assigned = assign_to_objects(
                anchors,
                image_objects,
                positive_iou=self.config.rpn_positive_iou,
                negative_iou=self.config.rpn_negative_iou,
                low_quality_iou=self.config.rpn_negative_iou,
            )
            assigned = torch.where(is_inside, assigned, IGNORED)
            (positive,), (negative,) = sampler([assigned + 1])  # expects 0 for background, -1 for ignored
            positive, negative = positive.bool(), negative.bool()
            objects_of.append(positive)
            sampled_of.append(positive | negative)
            targets.append(coder.encode_single(image_objects[assigned[positive]], anchors[positive]))
        is_object, is_sampled = torch.stack(objects_of), torch.stack(sampled_of)
        total = is_sampled.sum().clamp(min=1)
        entropy = nn.functional.binary_cross_entropy_with_logits(
            logits[is_sampled].float(), is_object[is_sampled].float(), reduction="sum"
        )
        distance = (codes[is_object].float() - torch.cat(targets)).abs().sum()
        return {"loss_rpn_classification": entropy / total, "loss_rpn_box": distance / total}


def check_scores(scores: torch.Tensor) -> None:
    """Raises a ValueError for NaN, which is below every threshold: an image would seem to be empty."""
    if scores.isnan().any():
        raise ValueError("The model's scores are NaN: its weights or its pixel_values are damaged, or too large.")


__all__ = ["RegionProposalNetwork", "check_scores"]
