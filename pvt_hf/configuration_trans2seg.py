"""Configuration of Trans2Seg (arXiv 2101.08461) on any backbone, PVT by default."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_pvt import build_backbone_config


@strict
class Trans2SegConfig(PreTrainedConfig):
    r"""
    Configuration of [`Trans2SegForSemanticSegmentation`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*): Configuration of any model that `AutoBackbone`
            knows. Two of its feature maps are read: the finest adds detail, the coarsest is what the transformer works
            on. `out_features=["stage1", "stage4"]` is the pair of the PVT paper, strides 4 and 32;
            `["stage1", "stage3"]` gives the transformer stride 16 and builds no stage 4. PVT-Tiny if not given.
        hidden_size (`int`, *optional*, defaults to 256): Channels of the transformer.
        encoder_layers (`int`, *optional*, defaults to 4): Blocks of the encoder.
        decoder_layers (`int`, *optional*, defaults to 4): Blocks of the decoder.
        num_attention_heads (`int`, *optional*, defaults to 8): Heads of every attention, and attention maps per class.
        mlp_ratio (`int`, *optional*, defaults to 3): Expansion of the MLPs.
        head_channels (`int`, *optional*, defaults to 40): Channels that the convolution head spends on each class.
            Memory and time of the head are proportional to it.
        position_grid (`int` or `list[int]`, *optional*, defaults to 32): Rows and columns of the encoder's learned
            position table, which is resized to the grid of the image.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the MLPs.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the transformer's norms.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of linear weights, prototypes,
            position table and cls token.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255): Label of pixels that count in no loss.
        num_labels (`int`, *optional*, defaults to 150): Number of classes, of ADE20K by default; `id2label` gives them
            names. Not a field, but written to `config.json`.

    Where the dimensions come from: the PVT paper prints two figures for PVT-Small with 150 classes; no dimension was
    published, nor any code of the combination. Width 256, 4 + 4 blocks, 8 heads, MLP ratio 3 and a table of 32x32 are
    the "medium" setting of the Trans2Seg code. The settings of its head, 32 channels ("small") and 64 ("medium"), would
    give 28.2 and 36.8 GFLOPs here; 40 comes near the paper. Counted as the paper counts (multiply-adds of convolutions,
    linear layers and attention products; no norms, activations or resizing) for an image of 512x512:

    | | parameters | GFLOPs |
    |---|---|---|
    | printed in the PVT paper | 32.1 M | 31.6 |
    | these defaults | 31.40 M | 29.9 |
    | with the MLPs that we leave out | 32.98 M | 31.8 |

    The last row adds the released code's MLPs along the 16x16 positions of the score maps, one per decoder block, which
    tie the weights to one image size.

    Raises:
        ValueError: a field that no model can be built from; the message names it.

    Example:

    ```python
    >>> from pvt_hf import Trans2SegConfig, Trans2SegForSemanticSegmentation
    >>> from pvt_hf.variants import get_config

    >>> backbone_config = get_config("pvt-small", out_features=["stage1", "stage4"])
    >>> model = Trans2SegForSemanticSegmentation(Trans2SegConfig(backbone_config=backbone_config, num_labels=11))
    ```"""

    model_type = "trans2seg"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="pvt")}

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 256
    encoder_layers: int = 4
    decoder_layers: int = 4
    num_attention_heads: int = 8
    mlp_ratio: int = 3
    head_channels: int = 40
    position_grid: int | list[int] | tuple[int, int] = 32
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        self.backbone_config = build_backbone_config(self.backbone_config)
        if self.id2label is None and kwargs.get("num_labels") is None:
            kwargs["num_labels"] = 150
        super().__post_init__(**kwargs)
        self._validate()

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, with `num_labels`: the file leaves out default names of two classes."""
        return {**super().to_dict(), "num_labels": self.num_labels}

    def _validate(self) -> None:
        for name in (
            "hidden_size",
            "encoder_layers",
            "decoder_layers",
            "num_attention_heads",
            "mlp_ratio",
            "head_channels",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, which num_attention_heads, {self.num_attention_heads}, does not "
                "divide: every head takes an equal share of the channels."
            )
        grid = self.position_grid
        if not isinstance(grid, int) and len(grid) != 2 or min([grid] if isinstance(grid, int) else grid) < 1:
            raise ValueError(
                f"position_grid must be a number of at least 1, or two of them (rows, columns), got {grid}."
            )
        if self.num_labels < 2:
            raise ValueError(f"num_labels must be at least 2 (background counts as a class), got {self.num_labels}.")
        if 0 <= self.semantic_loss_ignore_index < self.num_labels:
            raise ValueError(
                f"semantic_loss_ignore_index is {self.semantic_loss_ignore_index}, which is also one of the "
                f"{self.num_labels} classes: choose a number that is none, such as -100."
            )


__all__ = ["Trans2SegConfig"]
