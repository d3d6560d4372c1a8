"""
Mask R-CNN with a fixed number of proposals and detections, for `torch.export`: a program has no lists whose length
depends on the image, and no loop over the images of a batch.

The results are those of `RegionProposalNetwork.proposals` and `MaskRcnnForInstanceSegmentation.detect` but for the
rounding of fp32: all images, levels and classes share one non-maximum suppression, for which the boxes of each group
are moved to a place of their own, and numbers of some thousand pixels have lost a digit or two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.utils import is_torchvision_available

from .modeling_anchors import box_coder, clip_to_image, normalised_boxes


if is_torchvision_available():
    from torchvision.ops import nms, roi_align


def kept_boxes(
    boxes_xyxy: torch.Tensor, scores: torch.Tensor, column: torch.Tensor, row: torch.Tensor, side: Any, threshold: float
) -> torch.Tensor:
    """
    Non-maximum suppression among the boxes of each group.

    Args:
        boxes_xyxy: (boxes, 4), from 0 to `side`.
        scores: (boxes,).
        column, row: (boxes,) int64. Both together name the group of a box.
        side: a number larger than all coordinates.
        threshold: of two boxes of a group with a higher IoU, the better one is kept.

    Returns:
        (kept,) int64: indices of the boxes that are kept.
    """
    corner = torch.stack([column, row], dim=1) * side
    return nms(boxes_xyxy + torch.cat([corner, corner], dim=1), scores, threshold)


def fixed_proposals(
    config: Any,
    logits: list[torch.Tensor],
    codes: list[torch.Tensor],
    anchors: list[torch.Tensor],
    inside: torch.Tensor,
    image_sizes: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Proposals (batch, num_proposals, 4) fp32, xyxy in pixels, highest score first, and whether there is one, (batch,
    num_proposals) bool. Takes what `RegionProposalNetwork.proposals` takes.
    """
    batch = image_sizes.shape[0]
    level_boxes, level_scores, level_numbers = [], [], []
    # shape[0] and shape[1], because len() would freeze the size in an exported graph
    inside_by_level = inside.split([level.shape[0] for level in anchors], dim=1)
    for number, (level_logits, level_codes, level_anchors) in enumerate(zip(logits, codes, anchors)):
        score = level_logits.float().masked_fill(~inside_by_level[number], -torch.inf)
        score, best = score.topk(torch.sym_min(score.shape[1], config.num_candidates), dim=1)
        at = best[..., None].expand(-1, -1, 4)
        chosen = level_anchors.expand(batch, -1, -1).gather(1, at).flatten(0, 1)
        box = box_coder().decode_single(level_codes.float().gather(1, at).flatten(0, 1), chosen)
        level_boxes.append(box.unflatten(0, (batch, -1)))
        level_scores.append(score)
        level_numbers.append(torch.full_like(best, number))
    boxes = clip_to_image(torch.cat(level_boxes, dim=1), image_sizes)
    scores, levels = torch.cat(level_scores, dim=1), torch.cat(level_numbers, dim=1)
    usable = ((boxes[..., 2:] - boxes[..., :2]) > 0).all(dim=-1) & (scores > -torch.inf)
    scores = scores.masked_fill(~usable, torch.finfo(scores.dtype).min)

    image = torch.arange(batch, device=boxes.device)[:, None].expand_as(levels)
    kept = kept_boxes(
        boxes.flatten(0, 1),
        scores.flatten(),
        levels.flatten(),
        image.flatten(),
        image_sizes.max() + 1,
        config.rpn_nms_threshold,
    )
    is_kept = torch.zeros_like(scores).flatten().scatter(0, kept, 1.0).view_as(scores) > 0
    scores = scores.masked_fill(~(is_kept & usable), -torch.inf)
    # Small images have fewer candidates.
    scores = torch.cat([scores, scores.new_full((batch, config.num_proposals), -torch.inf)], dim=1)
    boxes = torch.cat([boxes, boxes.new_zeros(batch, config.num_proposals, 4)], dim=1)
    scores, best = scores.topk(config.num_proposals, dim=1)
    there = scores > -torch.inf
    return boxes.gather(1, best[..., None].expand(-1, -1, 4)) * there[..., None], there


def pool_regions(
    pooler: nn.Module, strides: tuple[int, ...], maps: list[torch.Tensor], boxes_xyxy: torch.Tensor, size: int
) -> torch.Tensor:
    """
    Pools the same number of regions of each image.

    Args:
        pooler: a `RegionPooler`, which knows the level of a region.
        strides: of the levels.
        maps: of the levels, (batch, channels, rows_i, columns_i).
        boxes_xyxy: (batch, regions, 4), in pixels.

    Returns:
        (batch * regions, channels, size, size), in the dtype of the maps.
    """
    image = torch.arange(boxes_xyxy.shape[0], device=boxes_xyxy.device)[:, None, None].expand_as(boxes_xyxy[..., :1])
    rois = torch.cat([image.to(boxes_xyxy.dtype), boxes_xyxy], dim=-1).flatten(0, 1)
    levels = pooler.levels(rois)  # type: ignore[operator]  # a method, which torch types as Module
    pooled = rois.new_zeros(rois.shape[0], maps[0].shape[1], size, size)
    for level, (feature_map, stride) in enumerate(zip(maps, strides)):
        is_here = (levels == level)[:, None]
        # Regions of other levels become empty, which costs almost nothing.
        here = torch.cat([rois[:, :1], torch.where(is_here, rois[:, 1:], torch.zeros_like(rois[:, 1:]))], dim=1)
        regions = roi_align(feature_map.float(), here, size, 1 / stride, sampling_ratio=0, aligned=True)
        pooled = torch.where(is_here[..., None, None], regions, pooled)
    return pooled.to(maps[0].dtype)


def fixed_detections(
    config: Any,
    logits: torch.Tensor,
    codes: torch.Tensor,
    proposals: torch.Tensor,
    there: torch.Tensor,
    image_sizes: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Decodes boxes, and applies threshold and non-maximum suppression.

    Args:
        logits: (batch, num_proposals, num_labels + 1), background last.
        codes: (batch, num_proposals, num_labels, 4), predicted box offsets.
        proposals, there: see [`fixed_proposals`].
        image_sizes: (batch, 2), (height, width) in pixels.

    Returns:
        Highest score first, zeros beyond the last detection: boxes (batch, max_detections, 4), xyxy in pixels; scores
        and labels (batch, max_detections); number of detections (batch,) int64.
    """
    batch, (regions, num_labels) = codes.shape[0], codes.shape[1:3]
    coder, limit = box_coder(config.box_code_std), config.max_detections
    scores = logits.float().softmax(dim=-1)[..., :-1] * there[..., None]  # (batch, regions, num_labels)
    (found,) = torch.where(scores.flatten() > config.score_threshold)
    image, region = found // (regions * num_labels), found // num_labels  # region counts through the batch
    boxes = coder.decode_single(codes.float().flatten(0, 2)[found], proposals.flatten(0, 1)[region])
    boxes = clip_to_image(boxes[:, None], image_sizes[image])[:, 0]
    label, columns = found % num_labels, int(num_labels**0.5) + 1
    row = image * columns + label // columns
    found_scores = scores.flatten()[found]
    kept = kept_boxes(boxes, found_scores, label % columns, row, image_sizes.max() + 1, config.nms_threshold)

    final = torch.zeros_like(scores).flatten().scatter(0, found[kept], found_scores[kept]).unflatten(0, (batch, -1))
    final = torch.cat([final, final.new_zeros(batch, limit)], dim=1)  # there may be fewer pairs than detections
    best_scores, best = final.topk(limit, dim=1)
    is_found = best_scores > 0
    best = torch.where(is_found, best, torch.zeros_like(best))
    at = (best // num_labels)[..., None].expand(-1, -1, 4)
    best_codes = codes.float().flatten(1, 2).gather(1, best[..., None].expand(-1, -1, 4))
    best_boxes = coder.decode_single(best_codes.flatten(0, 1), proposals.gather(1, at).flatten(0, 1))
    best_boxes = clip_to_image(best_boxes.unflatten(0, (batch, -1)), image_sizes) * is_found[..., None]
    return best_boxes, best_scores, (best % num_labels) * is_found, is_found.sum(dim=1)


def fixed_detect(
    model: Any, maps: list[torch.Tensor], proposals: torch.Tensor, there: torch.Tensor, image_sizes: torch.Tensor,
    strides: tuple[int, ...], box_region_size: int, mask_region_size: int,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """`MaskRcnnForInstanceSegmentation.detect`, with proposals as [`fixed_proposals`] gives them."""
    batch = image_sizes.shape[0]
    logits, codes = model.box_head(pool_regions(model.pooler, strides, maps, proposals, box_region_size))
    boxes, scores, labels, counts = fixed_detections(
        model.config, logits.unflatten(0, (batch, -1)), codes.unflatten(0, (batch, -1)), proposals, there, image_sizes
    )
    masks = model.mask_head(pool_regions(model.pooler, strides, maps, boxes, mask_region_size)).float()
    at = labels.flatten()[:, None, None, None].expand(-1, 1, *masks.shape[-2:])
    masks = masks.gather(1, at)[:, 0].unflatten(0, (batch, -1))
    return {
        "pred_scores": scores,
        "pred_labels": labels,
        "pred_boxes": normalised_boxes(boxes, image_sizes),
        "pred_masks": masks * (scores > 0)[..., None, None],
        "num_detections": counts,
    }


__all__ = ["fixed_detect", "fixed_proposals"]
