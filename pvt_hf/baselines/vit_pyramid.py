"""
ViT as a backbone for dense prediction: the columnar model that Table 8 of the PVT paper compares with.

The paper's ViT-Small has 8 layers of 768 channels (`vit_small_patch16_224` of timm 0.3.2, not what is called ViT-Small
today). Section 5.5 takes the outputs of layers 2, 4, 6 and 8 and interpolates them to four scales; it does not say how.
Here: bilinear, to strides 4, 8, 16 and 32. No code was published. Importing this file registers the backbone with
AutoConfig and AutoBackbone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoBackbone, AutoConfig, ViTConfig
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer, ViTPreTrainedModel
from transformers.utils.output_capturing import capture_outputs


STRIDES = (4, 8, 16, 32)


@strict
class VitPyramidConfig(BackboneConfigMixin, ViTConfig):
    """
    Configuration of [`VitPyramidBackbone`]: the fields of `ViTConfig`, with the paper's ViT-Small/32 as default, and
    the `out_features` and `out_indices` of a backbone, from "stage1" to "stage4".

    Raises:
        ValueError: the number of layers is not a multiple of four; patches or `image_size` are not square.
    """

    model_type = "vit_pyramid"

    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    intermediate_size: int = 2304
    layer_norm_eps: float = 1e-6
    patch_size: int | list[int] | tuple[int, int] = 32
    qkv_bias: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    if TYPE_CHECKING:  # an argument of the constructor that is not a field
        out_features: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.patch_size, int) or not isinstance(self.image_size, int):
            raise ValueError(
                f"patch_size and image_size must be one number each, for squares, got {self.patch_size} and "
                f"{self.image_size}."
            )
        if self.num_hidden_layers < len(STRIDES) or self.num_hidden_layers % len(STRIDES):
            raise ValueError(
                f"num_hidden_layers must be a multiple of {len(STRIDES)}, one for each scale, got "
                f"{self.num_hidden_layers}."
            )
        kwargs.pop("stage_names", None)
        self.stage_names = [f"stage{index}" for index in range(1, len(STRIDES) + 1)]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


class VitPyramidBackbone(BackboneMixin, ViTPreTrainedModel):
    """
    Four feature maps from equally spaced layers of a ViT, each interpolated to its stride. Images may have any size of
    at least a patch and 32 pixels; pixels beyond a multiple of the patch size are ignored.
    """

    config: VitPyramidConfig
    config_class = VitPyramidConfig

    def __init__(self, config: VitPyramidConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(STRIDES)
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """
        Args:
            pixel_values: (batch, num_channels, height, width), float.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `feature_maps`: for each stage in `out_features` (batch, hidden_size, height // stride, width // stride).
        """
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.patch_size
        assert isinstance(patch_size, int)  # checked by the configuration
        grid = (height // patch_size, width // patch_size)
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding=True)
        every = len(self.layers) // len(STRIDES)
        feature_maps: tuple[torch.Tensor, ...] = ()
        for index, layer in enumerate(self.layers, 1):
            hidden_states = layer(hidden_states, **kwargs)
            stage = index // every - 1
            if index % every == 0 and self.stage_names[stage] in self.out_features:
                tokens = hidden_states[:, 1:].transpose(1, 2).unflatten(2, grid)  # (batch, hidden_size, rows, columns)
                size = (height // STRIDES[stage], width // STRIDES[stage])
                feature_maps += (nn.functional.interpolate(tokens, size=size, mode="bilinear", align_corners=False),)
        return BackboneOutput(feature_maps=feature_maps)  # type: ignore[arg-type]  # there a tuple of exactly one


def register() -> None:
    """Makes the backbone known to AutoConfig and AutoBackbone."""
    AutoConfig.register(VitPyramidConfig.model_type, VitPyramidConfig, exist_ok=True)
    AutoBackbone.register(VitPyramidConfig, VitPyramidBackbone, exist_ok=True)


register()

__all__ = ["VitPyramidBackbone", "VitPyramidConfig"]
