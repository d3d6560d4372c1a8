"""Configuration of Trans2Seg (arXiv 2101.08461) on any backbone, PVT by default."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from .configuration_head import HeadConfig


@strict
class Trans2SegConfig(HeadConfig):
    r"""
    Configuration of [`Trans2SegForSemanticSegmentation`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to PVT-Tiny): Configuration of a model that
            `AutoBackbone` knows. Two of its feature maps are read: the coarsest goes through the transformer, the
            finest adds detail in the head. `out_features=["stage1", "stage4"]` has the strides of the PVT paper, 4 and
            32; `["stage1", "stage3"]` runs the transformer at stride 16 and builds no stage 4.
        hidden_size (`int`, *optional*, defaults to 256): Channels of the transformer.
        encoder_layers (`int`, *optional*, defaults to 4): Blocks of the encoder.
        decoder_layers (`int`, *optional*, defaults to 4): Blocks of the decoder.
        num_attention_heads (`int`, *optional*, defaults to 8): Attention heads; also the attention maps per class.
        mlp_ratio (`int`, *optional*, defaults to 3): Hidden size of the MLPs, in multiples of `hidden_size`.
        head_channels (`int`, *optional*, defaults to 40): Channels per class in the convolution head. Its memory and
            time are proportional to it.
        position_grid (`int` or `list[int]`, *optional*, defaults to 32): (rows, columns) of the encoder's learned
            position table, or one number for both. The table is resized to the grid of the image.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the MLPs.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the transformer's layer norms.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of the initial values of linear
            weights, position table and cls token.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255): Label of pixels without a class, which the loss
            ignores.
        num_labels (`int`, *optional*, defaults to 150): Number of classes (150 in ADE20K). Not a field: it follows
            `id2label`. It is written to `config.json`.

    Source of the defaults: the PVT paper prints parameters and GFLOPs for PVT-Small with 150 classes, but neither the
    dimensions nor the code of this combination were published. Width 256, 4 + 4 blocks, 8 heads, MLP ratio 3 and a
    32x32 position table are the "medium" setting of the Trans2Seg code. Its heads have 32 ("small") or 64 channels
    ("medium"), which give 28.4 or 37.1 GFLOPs here; 40 channels come closer to the paper. GFLOPs are counted as in the
    paper (multiply-adds of convolutions, linear layers and attention products, and one for each element of a ReLU) for
    a 512x512 image:

    | | parameters | GFLOPs |
    |---|---|---|
    | printed in the PVT paper | 32.1 M | 31.6 |
    | these defaults | 31.40 M | 30.1 |
    | with the MLPs that we leave out | 32.98 M | 32.0 |

    The last row adds MLPs of the released code that mix the 16x16 positions of the score maps, one per decoder block.
    They would tie the weights to one image size.

    Raises:
        ValueError: a field has an invalid value; the message names it.

    Example:

    ```python
    >>> from pvt_hf import Trans2SegConfig, Trans2SegForSemanticSegmentation
    >>> from pvt_hf.weights.variants import get_config

    >>> backbone_config = get_config("pvt-small", out_features=["stage1", "stage4"])
    >>> model = Trans2SegForSemanticSegmentation(Trans2SegConfig(backbone_config=backbone_config, num_labels=11))
    ```"""

    model_type = "trans2seg"
    default_num_labels = 150

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

    def _validate(self) -> None:
        self._check_at_least(
            1, "hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads", "mlp_ratio", "head_channels"
        )
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
        self._check_semantic_labels()


__all__ = ["Trans2SegConfig"]
