"""
DETR (arXiv 2005.12872) on PVT, as in section 5.4 of the PVT paper: Transformers' `DetrForObjectDetection` with a
backbone that travels with it. Parameter names, outputs, matching and, on one process, losses are Transformers' own.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, AutoModelForObjectDetection, DetrForObjectDetection, PreTrainedConfig
from transformers import initialization as init
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.utils import is_accelerate_available

from .configuration_pvt_detr import PvtDetrConfig
from .modeling_anchors import check_detection_labels, image_sizes_of
from .modeling_pvt import PvtBackbone


if is_accelerate_available():
    from accelerate import PartialState
    from accelerate.utils import reduce


def detr_loss(
    logits: torch.Tensor,
    labels: list[dict[str, torch.Tensor]],
    device: torch.device,
    pred_boxes: torch.Tensor,
    config: PvtDetrConfig,
    *auxiliary: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[dict[str, torch.Tensor]] | None]:
    """
    Transformers' `ForObjectDetectionLoss`, with the same arguments and results, whose box terms are means over the
    objects of an average process (DETR, section 3.1; facebookresearch/detr `SetCriterion.forward`), of at least one.

    Transformers 5.23 divides the average by the number of processes once more, so that boxes weigh eight times as much
    against classes on eight devices as on one.
    """
    loss, losses, auxiliary_outputs = ForObjectDetectionLoss(
        logits, labels, device, pred_boxes, config, *auxiliary, **kwargs
    )
    # As Transformers has it: without Accelerate no process knows of another
    if is_accelerate_available() and PartialState._shared_state and (processes := PartialState().num_processes) > 1:
        objects = torch.tensor(float(sum(len(label["class_labels"]) for label in labels)), device=device)
        mean = reduce(objects)
        ratio = (mean / processes).clamp(min=1) / mean.clamp(min=1)
        weights = {"loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
        for name, value in losses.items():
            weight = weights.get(re.sub(r"_\d+$", "", name))  # loss_bbox_0 is that of the first decoder layer
            if weight is not None:
                losses[name] = value * ratio
                loss = loss + weight * (losses[name] - value)
    return loss, losses, auxiliary_outputs


class PvtDetrForObjectDetection(DetrForObjectDetection):
    """
    DETR on a [`PvtBackbone`], or on any other backbone. It starts from random weights.

    `forward` is that of `DetrForObjectDetection`, and checks the labels first: boxes in pixels, or the class of "no
    object", would be learnt without a word. Boxes of labels and predictions are relative to the image without its
    padding, as in the paper and as [`PvtDetrImageProcessor`] makes them (Transformers' processor relates them to the
    padded image). New weights are those of the original code (facebookresearch/detr `detr.py`, `transformer.py` in
    `models`): Xavier-uniform in encoder and decoder, queries of unit variance, PyTorch's own in projection and heads.
    In Transformers all are normal with a standard deviation of 0.02, and a small model learns much later.
    """

    config: PvtDetrConfig
    config_class = PvtDetrConfig

    def __init__(self, config: PvtDetrConfig):
        backbone_config = config.backbone_config
        assert isinstance(backbone_config, PreTrainedConfig)  # PvtDetrConfig makes one of what it is given
        if backbone_config.model_type == "pvt":
            # DETR asks AutoBackbone, which goes by class: of code loaded from a folder there may be several modules.
            AutoBackbone.register(type(backbone_config), PvtBackbone, exist_ok=True)
        super().__init__(config)
        self.loss_function = detr_loss
        for part in (self.model.encoder, self.model.decoder):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    init.xavier_uniform_(module.weight)
        init.normal_(self.model.query_position_embeddings.weight)
        self.model.input_projection.reset_parameters()
        for head in (self.class_labels_classifier, *self.bbox_predictor.layers):
            head.reset_parameters()

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        *,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            pixel_values: (batch, num_channels, height, width), float, of any size that the backbone takes.
            pixel_mask: (batch, height, width), 1 for the image and 0 for padding at the right and below.
            labels: per image `class_labels` (objects,) int64 and `boxes` (objects, 4), cxcywh from 0 to 1 of the image
                without its padding. Other keys are not looked at.
            kwargs: whatever else `DetrForObjectDetection` takes.

        Returns:
            `DetrObjectDetectionOutput`: `loss` and `loss_dict` if labels are given, `logits` (batch, num_queries,
            num_labels + 1), the last of "no object", `pred_boxes` (batch, num_queries, 4) as those of labels, and more.

        Raises:
            ValueError: what the backbone raises for its input; a mask of another size or of padding alone; labels of
                wrong types, shapes or values.
        """
        if pixel_mask is not None:
            image_sizes_of(pixel_values, pixel_mask)  # for its checks: of another size, it would do as if it fitted
        if labels is not None:
            check_detection_labels(labels, len(pixel_values), self.config.num_labels)
        return super().forward(pixel_values, pixel_mask=pixel_mask, labels=labels, **kwargs)


# Pipelines look the name up in this table and print an error if it is not there.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["pvt_detr"] = "PvtDetrForObjectDetection"
AutoModelForObjectDetection.register(PvtDetrConfig, PvtDetrForObjectDetection, exist_ok=True)

__all__ = ["PvtDetrForObjectDetection"]
