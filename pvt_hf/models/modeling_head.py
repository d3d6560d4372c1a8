"""Base class of the models with a head: builds the backbone, and declares what Transformers needs to know."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .configuration_head import HeadConfig
from .modeling_pvt import build_backbone, check_not_empty


class HeadPreTrainedModel(PreTrainedModel):
    """
    Base class of the models with a head. Subclasses call [`HeadPreTrainedModel.add_backbone`] and set
    `_no_split_modules`.
    """

    config: HeadConfig
    backbone: Any  # a PreTrainedModel and BackboneMixin; Python has no type for both
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    # Attention runs in the backbone, which refuses implementations that it does not support.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Losses are means over pixels or objects, which Trainer does not count. It then averages them over steps.
    accepts_loss_kwargs = False

    def add_backbone(self, wanted: str, minimum: int, maximum: int | None = None) -> list[int]:
        """
        Builds `self.backbone`, with random weights.

        Args:
            wanted: description of the feature maps that the head reads, for the error message.
            minimum: smallest number of feature maps.
            maximum: largest number of feature maps; None for no limit.

        Returns:
            Channels of the feature maps, finest first.

        Raises:
            ValueError: the backbone returns too few or too many feature maps.
        """
        backbone_config = self.config.backbone_config
        assert isinstance(backbone_config, PreTrainedConfig)  # HeadConfig has built it
        self.backbone = build_backbone(backbone_config)
        channels = self.backbone.channels
        if len(channels) < minimum or maximum is not None and len(channels) > maximum:
            raise ValueError(
                f"{type(self).__name__} reads {wanted}; this {backbone_config.model_type!r} backbone gives "
                f"{len(channels)} (out_features {self.backbone.out_features} of {self.backbone.stage_names}): set "
                "out_features or out_indices of backbone_config."
            )
        return channels

    def run_backbone(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """
        The `BackboneOutput` of the backbone. It has `hidden_states` and `attentions` if the call asks for them, or else
        this model's configuration: the backbone reads only its own.
        """
        check_not_empty(pixel_values)
        for name in ("output_hidden_states", "output_attentions"):
            if getattr(self.config, name):
                kwargs.setdefault(name, getattr(self.config, name))
        return self.backbone.forward_with_filtered_kwargs(pixel_values, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The first layer of the backbone, if the backbone defines it."""
        return self.backbone.get_input_embeddings()


__all__ = ["HeadPreTrainedModel"]
