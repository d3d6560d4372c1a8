"""
RetinaNet (Focal Loss for Dense Object Detection, arXiv 1708.02002) on any backbone: object detection as in section 5.2
of the PVT paper.

Follows mmdetection's `FPN` and `RetinaHead`, with its assignment and losses, in the official configuration
`detection/configs/_base_/models/retinanet_r50_fpn.py` of https://github.com/whai362/PVT. Uses torchvision's focal loss
and box coder, but not its RetinaNet, which has other anchors, another assignment (see `modeling_anchors.py`) and an
activation before the last level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForObjectDetection
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, is_torchvision_available
from transformers.utils.generic import can_return_tuple

from .configuration_retinanet import RetinaNetConfig
from .modeling_anchors import (
    IGNORED,
    AnchorGrid,
    assign_to_objects,
    box_coder,
    boxes_in_pixels,
    check_detection_labels,
    image_sizes_of,
    normalised_boxes,
    require_torchvision,
)
from .modeling_fpn import FeaturePyramidNetwork, FpnConv2d
from .modeling_head import HeadPreTrainedModel


if is_torchvision_available():
    from torchvision.ops import sigmoid_focal_loss

FIRST_STRIDE = 8
NUM_LEVELS = 5


@dataclass
class RetinaNetObjectDetectionOutput(ModelOutput):
    """
    Args:
        loss: fp32 scalar, the sum of `loss_dict`; if labels are given.
        loss_dict: `loss_classification` and `loss_box`, scalars.
        logits: (batch, candidates, num_labels). Classes are independent (sigmoid). Candidates are the `num_candidates`
            anchors of each level whose best class has the highest scores (all anchors of levels with fewer), ordered by
            level and cell. Logits of anchors in padding are the lowest number of the dtype.
        pred_boxes: (batch, candidates, 4) fp32, (centre x, centre y, width, height) from 0 to 1, relative to the image
            without padding and clipped to it.
        hidden_states: of the backbone, on request.
        attentions: of the backbone, on request.

    `logits` and `pred_boxes` carry no gradient: a loss of your own would train nothing through them. Train with `loss`.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class RetinaNetNeck(nn.Module):
    """FPN over three feature maps, and two coarser levels by strided convolutions of the backbone's last map."""

    def __init__(self, in_channels: list[int], out_channels: int):
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(in_channels, out_channels)
        self.extra_convs = nn.ModuleList(
            FpnConv2d(channels, out_channels, kernel_size=3, stride=2, padding=1)
            for channels in (in_channels[-1], out_channels)
        )

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Returns five maps (batch, out_channels, rows_i, columns_i), strides 8 to 128."""
        maps = self.pyramid(feature_maps)
        coarse = feature_maps[-1]
        for conv in self.extra_convs:
            coarse = conv(coarse)
            maps.append(coarse)
        return maps


class RetinaNetHead(nn.Module):
    """Two branches of convolutions, for classes and boxes, shared by all levels."""

    def __init__(self, config: RetinaNetConfig, anchors_per_cell: int):
        super().__init__()
        channels = config.fpn_channels

        def branch() -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(config.num_head_convs)
            )

        self.class_convs, self.box_convs = branch(), branch()
        self.classifier = nn.Conv2d(channels, anchors_per_cell * config.num_labels, kernel_size=3, padding=1)
        self.box_regressor = nn.Conv2d(channels, anchors_per_cell * 4, kernel_size=3, padding=1)
        self.num_labels = config.num_labels

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (batch, anchors, num_labels) and box offsets (batch, anchors, 4) for the map of one level."""
        classes = boxes = feature_map
        for conv in self.class_convs:
            classes = nn.functional.relu(conv(classes))
        for conv in self.box_convs:
            boxes = nn.functional.relu(conv(boxes))
        return by_anchor(self.classifier(classes), self.num_labels), by_anchor(self.box_regressor(boxes), 4)


def by_anchor(feature_map: torch.Tensor, values: int) -> torch.Tensor:
    """(batch, anchors_per_cell * values, rows, columns) to (batch, rows * columns * anchors_per_cell, values)."""
    return feature_map.permute(0, 2, 3, 1).unflatten(-1, (-1, values)).flatten(1, 3)


def smaller(size: int, limit: int) -> Any:
    """min(size, limit), which stays a function of the image's size in a traced or exported graph."""
    if torch.jit.is_tracing():  # sizes are tensors
        return torch.minimum(torch.as_tensor(size), torch.tensor(limit))
    return torch.sym_min(size, limit)


class RetinaNetForObjectDetection(HeadPreTrainedModel):
    """Backbone, FPN and RetinaNet's head. The backbone starts from random weights."""

    config: RetinaNetConfig
    config_class = RetinaNetConfig
    _no_split_modules = ["RetinaNetNeck", "RetinaNetHead"]
    _can_compile_fullgraph = True

    def __init__(self, config: RetinaNetConfig):
        require_torchvision(type(self).__name__)
        super().__init__(config)
        channels = self.add_backbone("three feature maps, at strides 8, 16 and 32", 3, 3)
        strides = [FIRST_STRIDE * 2**level for level in range(NUM_LEVELS)]
        octave = [2 ** (step / config.anchor_scales_per_octave) for step in range(config.anchor_scales_per_octave)]
        sizes = [[stride * config.anchor_scale * scale for scale in octave] for stride in strides]
        self.anchors = AnchorGrid(strides, sizes, config.anchor_ratios)
        self.neck = RetinaNetNeck(channels, config.fpn_channels)
        self.head = RetinaNetHead(config, self.anchors.anchors_per_cell)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        As mmdetection: Xavier-uniform in the neck, normal with standard deviation 0.01 in the head. The classifier's
        bias gives every class the prior probability. The backbone initialises itself.
        """
        super()._init_weights(module)
        if isinstance(module, FpnConv2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            init.normal_(module.weight, std=0.01)
            assert module.bias is not None
            init.zeros_(module.bias)
            if module is self.head.classifier:
                prior = self.config.prior_probability
                init.constant_(module.bias, -math.log((1 - prior) / prior))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RetinaNetObjectDetectionOutput:
        """
        Args:
            pixel_values: (batch, num_channels, height, width), float, of any size that the backbone accepts.
            pixel_mask: (batch, height, width), 1 for the image and 0 for padding at the right and bottom.
            labels: for each image a dict with `class_labels` (objects,), integers, and `boxes` (objects, 4), cxcywh
                from 0 to 1, relative to the image without padding. Other keys are ignored.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: labels or mask have wrong shapes or values; or the backbone refuses its input.
        """
        if labels is not None:
            check_detection_labels(labels, len(pixel_values), self.config.num_labels)
        outputs = self.run_backbone(pixel_values, **kwargs)
        image_sizes = image_sizes_of(pixel_values, pixel_mask)
        maps = self.neck(outputs.feature_maps)
        logits, codes = zip(*(self.head(feature_map) for feature_map in maps))
        anchors, inside = self.anchors(maps), self.anchors.inside(maps, image_sizes)

        loss: torch.Tensor | None = None
        loss_dict = None
        if labels is not None:
            loss_dict = self.losses(
                torch.cat(logits, dim=1), torch.cat(codes, dim=1), torch.cat(anchors), inside, labels, image_sizes
            )
            loss = loss_dict["loss_classification"] + loss_dict["loss_box"]
        candidate_logits, pred_boxes = self.candidates(logits, codes, anchors, inside, image_sizes)
        return RetinaNetObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=candidate_logits,
            pred_boxes=pred_boxes,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def losses(
        self,
        logits: torch.Tensor,
        codes: torch.Tensor,
        anchors: torch.Tensor,
        inside: torch.Tensor,
        labels: list[dict[str, torch.Tensor]],
        image_sizes: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """
        The focal loss of classes and the L1 loss of box offsets, each divided by the number of positive anchors in the
        batch. An image without positive anchors counts as one.

        Args:
            logits: (batch, anchors, num_labels).
            codes: (batch, anchors, 4), predicted box offsets.
            anchors: (anchors, 4), xyxy in pixels.
            inside: (batch, anchors) bool, False in padding.
            labels: as in `forward`.
            image_sizes: (batch, 2), (height, width) in pixels, without padding.

        Returns:
            `loss_classification` and `loss_box`, fp32 scalars.
        """
        coder = box_coder()
        class_targets, code_targets, is_positive, counts = [], [], [], []
        for label, is_inside, image_size in zip(labels, inside, image_sizes):
            objects = boxes_in_pixels(label["boxes"], image_size)  # (objects, 4)
            assigned = assign_to_objects(
                anchors,
                objects,
                positive_iou=self.config.positive_iou,
                negative_iou=self.config.negative_iou,
                low_quality_iou=0.0,
            )
            assigned = torch.where(is_inside, assigned, IGNORED)
            positive = assigned >= 0
            # A dummy object for anchors without one, so that shapes do not depend on values.
            objects = torch.cat([objects, anchors[:1]])
            classes = torch.cat([label["class_labels"].long(), label["class_labels"].new_zeros(1, dtype=torch.long)])
            chosen = torch.where(positive, assigned, len(objects) - 1)
            one_hot = torch.zeros(len(anchors), self.config.num_labels, device=anchors.device)
            class_targets.append(one_hot.scatter(1, classes[chosen, None], positive[:, None].float()))
            code_targets.append(coder.encode_single(objects[chosen], anchors))
            is_positive.append(positive)
            counts.append((positive.sum().clamp(min=1), assigned != IGNORED))
        total = sum(count for count, _ in counts)
        is_counted = torch.stack([counted for _, counted in counts])
        positive = torch.stack(is_positive)

        focal = sigmoid_focal_loss(
            logits.float(),
            torch.stack(class_targets),
            alpha=self.config.focal_alpha,
            gamma=self.config.focal_gamma,
            reduction="none",
        )
        distance = (codes.float() - torch.stack(code_targets)).abs()
        return {
            "loss_classification": (focal * is_counted[..., None]).sum() / total,
            # torch.where, not a product: the distance to the dummy object may be infinite.
            "loss_box": torch.where(positive[..., None], distance, 0.0).sum() / total,
        }

    @torch.no_grad()
    def candidates(
        self,
        logits: tuple[torch.Tensor, ...],
        codes: tuple[torch.Tensor, ...],
        anchors: list[torch.Tensor],
        inside: torch.Tensor,
        image_sizes: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The highest-scoring anchors of each level: `logits` and `pred_boxes` of the output."""
        coder = box_coder()
        kept_logits, kept_boxes = [], []
        # shape[0], because len() would freeze the size in an exported graph
        inside_by_level = inside.split([level.shape[0] for level in anchors], dim=1)
        for level_logits, level_codes, level_anchors, is_inside in zip(logits, codes, anchors, inside_by_level):
            level_logits = level_logits.masked_fill(~is_inside[..., None], torch.finfo(level_logits.dtype).min)
            level_codes = level_codes.float()
            level_anchors = level_anchors.expand(level_logits.shape[0], -1, -1)
            count = smaller(level_logits.shape[1], self.config.num_candidates)
            best = level_logits.amax(dim=2).topk(count, dim=1).indices  # (batch, candidates)
            best = best.topk(count, dim=1, largest=False).values  # sorted; ExecuTorch has no operator for `sort`
            level_logits, level_codes, level_anchors = (
                tensor.gather(1, best[..., None].expand(-1, -1, tensor.shape[-1]))
                for tensor in (level_logits, level_codes, level_anchors)
            )
            boxes = coder.decode_single(level_codes.flatten(0, 1), level_anchors.flatten(0, 1))
            kept_logits.append(level_logits)
            kept_boxes.append(boxes.view_as(level_codes))
        return torch.cat(kept_logits, dim=1), normalised_boxes(torch.cat(kept_boxes, dim=1), image_sizes)


# Pipelines print an error for class names that are not in this table.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["retinanet"] = "RetinaNetForObjectDetection"
AutoModelForObjectDetection.register(RetinaNetConfig, RetinaNetForObjectDetection, exist_ok=True)

__all__ = ["RetinaNetForObjectDetection", "RetinaNetObjectDetectionOutput"]
