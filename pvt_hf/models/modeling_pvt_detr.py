"""
DETR (arXiv 2005.12872) on PVT, as in section 5.4 of the PVT paper: Transformers' `DetrForObjectDetection` with a
backbone whose code is saved with the model. Parameter names, outputs, matching and, on one process, losses are those of
Transformers.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoBackbone, AutoModelForObjectDetection, DetrForObjectDetection, PreTrainedConfig
from transformers import initialization as init
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.utils import is_accelerate_available

from .configuration_pvt_detr import PvtDetrConfig
from .modeling_anchors import check_detection_labels, image_sizes_of
from .modeling_pvt import PvtBackbone, check_not_empty


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
    Transformers' `ForObjectDetectionLoss`, with the same arguments and results, but correct on several processes: box
    losses are divided by the mean number of objects per process, or 1 if that is less (DETR, section 3.1;
    facebookresearch/detr `SetCriterion.forward`).

    Transformers 5.23 divides that mean by the number of processes once more. On eight devices, boxes then weigh eight
    times as much against classes as on one.
    """
    loss, losses, auxiliary_outputs = ForObjectDetectionLoss(
        logits, labels, device, pred_boxes, config, *auxiliary, **kwargs
    )
    # As in Transformers: without Accelerate, processes do not know of each other
    if is_accelerate_available() and PartialState._shared_state and (processes := PartialState().num_processes) > 1:
        objects = torch.tensor(float(sum(len(label["class_labels"]) for label in labels)), device=device)
        mean = reduce(objects)
        ratio = (mean / processes).clamp(min=1) / mean.clamp(min=1)
        weights = {"loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
        for name, value in losses.items():
            weight = weights.get(re.sub(r"_\d+$", "", name))  # loss_bbox_0 belongs to the first decoder layer
            if weight is not None:
                losses[name] = value * ratio
                loss = loss + weight * (losses[name] - value)
    return loss, losses, auxiliary_outputs


class PvtDetrForObjectDetection(DetrForObjectDetection):
    """
    DETR on a [`PvtBackbone`] or any other backbone, which starts from random weights.

    Differs from `DetrForObjectDetection` in three ways:

    - Labels are checked, because boxes in pixels or the class "no object" would be learnt without an error.
    - Boxes of labels and predictions are relative to the image without padding, as in the paper and in
      [`PvtDetrImageProcessor`]. (Transformers' processor makes them relative to the padded image.)
    - New weights are initialised as in the original code (facebookresearch/detr, `models/detr.py` and
      `models/transformer.py`): Xavier-uniform in encoder and decoder, queries with unit variance, PyTorch's default in
      projection and heads. In Transformers all are normal with standard deviation 0.02, and small models learn later.
    """

    config: PvtDetrConfig
    config_class = PvtDetrConfig

    def __init__(self, config: PvtDetrConfig):
        backbone_config = config.backbone_config
        assert isinstance(backbone_config, PreTrainedConfig)  # PvtDetrConfig has built it
        if backbone_config.model_type == "pvt":
            # DETR asks AutoBackbone, which looks up the configuration's class. Code loaded from a model's folder may
            # bring another copy of that class.
            AutoBackbone.register(type(backbone_config), PvtBackbone, exist_ok=True)
        super().__init__(config)
        self.loss_function = detr_loss

    @torch.no_grad()
    @init.guard_torch_init_functions()
    def initialize_weights(self) -> None:
        """
        Initialises what was not loaded from a checkpoint. (Transformers would not call `_init_weights` of this class
        for modules that hold no parameters themselves.)
        """
        super().initialize_weights()
        for part in (self.model.encoder, self.model.decoder):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    init.xavier_uniform_(module.weight)
        init.normal_(self.model.query_position_embeddings.weight)
        self.model.input_projection.reset_parameters()
        for head in (self.class_labels_classifier, *self.bbox_predictor.layers):
            head.reset_parameters()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """
        Part of `load_state_dict`, which here takes the names of saved files, too. Transformers saves DETR under older
        names, for plain DETR to open, and translates them in `from_pretrained`. But its Trainer passes the best
        checkpoint, or the one to resume from, to `load_state_dict(..., strict=False)`, which would drop those weights.
        """
        mapping = get_model_conversion_mapping(self, add_legacy=False)
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        for saved_name in [name for name in state_dict if name.startswith(prefix)]:
            name = saved_name.removeprefix(prefix)
            for renaming in renamings:
                name, _ = renaming.rename_source_key(name)
            state_dict[prefix + name] = state_dict.pop(saved_name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            pixel_values: (batch, num_channels, height, width), float, of any size that the backbone accepts.
            pixel_mask: (batch, height, width), 1 for the image and 0 for padding at the right and bottom.
            labels: for each image a dict with `class_labels` (objects,), int64, and `boxes` (objects, 4), cxcywh from 0
                to 1, relative to the image without padding. Other keys are ignored.
            decoder_attention_mask, encoder_outputs, inputs_embeds, decoder_inputs_embeds, kwargs: as in
                `DetrForObjectDetection`, in the same order.

        Returns:
            `DetrObjectDetectionOutput`: `loss` and `loss_dict` if labels are given; `logits` (batch, num_queries,
            num_labels + 1), "no object" last; `pred_boxes` (batch, num_queries, 4), as in labels; and more.

        Raises:
            ValueError: the mask has another size, or marks a whole image as padding; labels have wrong types, shapes or
                values; or the backbone refuses its input.
        """
        if pixel_values is not None and pixel_values.ndim != 4:  # DETR reads the shape before the backbone checks it
            raise ValueError(
                f"pixel_values must have the four dimensions (batch, channels, height, width), got shape "
                f"{tuple(pixel_values.shape)}: a single image needs a batch of one, `pixel_values[None]`."
            )
        if pixel_values is not None:
            check_not_empty(pixel_values)
        if pixel_mask is not None:
            image_sizes_of(pixel_values, pixel_mask)  # for its checks: DETR would resize a mask of another size
        if labels is not None:
            check_detection_labels(labels, len(pixel_values), self.config.num_labels)
        return super().forward(
            pixel_values,
            pixel_mask,
            decoder_attention_mask,
            encoder_outputs,
            inputs_embeds,
            decoder_inputs_embeds,
            labels,
            **kwargs,
        )


# Pipelines print an error for class names that are not in this table.
MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["pvt_detr"] = "PvtDetrForObjectDetection"
AutoModelForObjectDetection.register(PvtDetrConfig, PvtDetrForObjectDetection, exist_ok=True)

__all__ = ["PvtDetrForObjectDetection"]
