"""What the models with a head share: a backbone that they build, and what Transformers asks of a model class."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .configuration_head import HeadConfig
from .modeling_pvt import build_backbone


class HeadPreTrainedModel(PreTrainedModel):
    """
    Base of the models with a head, which call [`HeadPreTrainedModel.add_backbone`] and set `_no_split_modules`.
    """

    config: HeadConfig
    backbone: Any  # a PreTrainedModel that is a BackboneMixin, too, for which Python has no type
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    # Attention is the backbone's, which refuses what it cannot do.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Trainer's count of items knows nothing of pixels or objects: the losses are means, which it averages over steps.
    accepts_loss_kwargs = False

    def add_backbone(self, wanted: str, minimum: int, maximum: int | None = None) -> list[int]:
        """
        Builds `self.backbone`, with random weights.

        Args:
            wanted: which feature maps the head reads, for the error.
            minimum, maximum: how many it can read.

        Returns:
            Channels of the feature maps, finest first.

        Raises:
            ValueError: the backbone returns another number of feature maps.
        """
        backbone_config = self.config.backbone_config
        assert isinstance(backbone_config, PreTrainedConfig)  # HeadConfig makes one of what it is given
        self.backbone = build_backbone(backbone_config)
        channels = self.backbone.channels
        if len(channels) < minimum or maximum is not None and len(channels) > maximum:
            raise ValueError(
                f"{type(self).__name__} reads {wanted}; this {backbone_config.model_type!r} backbone gives "
                f"{len(channels)} (out_features {self.backbone.out_features}, of {self.backbone.stage_names}): name "
                "them in backbone_config, by out_features or out_indices."
            )
        return channels

    def get_input_embeddings(self) -> nn.Module:
        """What reads the image in the backbone, where the backbone says so."""
        return self.backbone.get_input_embeddings()


__all__ = ["HeadPreTrainedModel"]
