"""Configuration of Trans2Seg (arXiv 2101.08461) on any backbone, PVT by default."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from .configuration_head import HeadConfig


@strict
class Trans2SegConfig(HeadConfig):
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
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of linear weights, position
            table and cls token.
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
