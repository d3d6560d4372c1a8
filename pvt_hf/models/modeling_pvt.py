"""
Pyramid Vision Transformer (PVT, arXiv 2102.12122): model, image classifier and backbone, at any image size.

Parameter names are those of Transformers' native PVT, so weights go both ways. What is computed follows the official
code, `classification/pvt.py` and `detection/pvt.py` of https://github.com/whai362/PVT (Apache-2.0), branch v2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoBackbone, PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_pvt import PvtConfig


def to_feature_map(hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(batch, rows * columns, channels) to (batch, channels, rows, columns), a channels-last view: no copy."""
    return hidden_states.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """(batch, channels, rows, columns) to (batch, rows * columns, channels), a view if channels come last in memory."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def resize_position_table(
    table: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int = 0
) -> torch.Tensor:
    """
    Bilinear resize of a learned position table (paper section 4.2; official `_get_pos_embed`).

    Args:
        table: (1, num_prefix_tokens + rows * columns, channels), row-major, any float dtype.
        grid: (rows, columns) that the table was built for.
        new_grid: (rows, columns) wanted.
        num_prefix_tokens: leading rows without a place in the image (1 for the cls token), kept as they are.

    Returns:
        (1, num_prefix_tokens + new rows * new columns, channels) in the dtype of `table`. Interpolation is done in
        fp32, align_corners=False, without antialiasing.
    """
    prefix, table_2d = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    table_2d = to_feature_map(table_2d, grid)  # (1, channels, rows, columns)
    resized = nn.functional.interpolate(table_2d.float(), size=new_grid, mode="bilinear", align_corners=False)
    resized = to_tokens(resized).to(table.dtype)  # (1, new rows * new columns, channels)
    return torch.cat([prefix, resized], dim=1) if num_prefix_tokens else resized


class PvtDropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample while training, rescaling what is kept by 1 / keep."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        mask = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep_prob)
        return hidden_states * mask / keep_prob

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class PvtPatchEmbeddings(nn.Module):
    """
    Opens a stage: (batch, channels, height, width) to tokens (batch, [1 +] rows * columns, hidden_size).

    Patch projection, LayerNorm, the cls token if there is one (after the norm, as in the official code), positions.

    The official code uses the table as it is whenever the input has as many patches as *stage 1* was built for, which
    crashes at 448x448 and scrambles positions at 112x448. Here each stage compares with its own grid.
    """

    def __init__(self, config: PvtConfig, stage: int, has_cls_token: bool, num_prefix_rows: int):
        super().__init__()
        hidden_size, patch_size = config.hidden_sizes[stage], config.patch_sizes[stage]
        num_channels = config.num_channels if stage == 0 else config.hidden_sizes[stage - 1]
        image_size = config.image_size
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.grid = config.grid_sizes(height, width)[stage]
        # Rows of the table in front of the patches: one in the last stage, used if there is a cls token.
        self.num_prefix_rows = num_prefix_rows

        rows, columns = self.grid
        self.position_embeddings = nn.Parameter(torch.empty(1, num_prefix_rows + rows * columns, hidden_size))
        self.cls_token = nn.Parameter(torch.empty(1, 1, hidden_size)) if has_cls_token else None
        self.projection = nn.Conv2d(num_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.layer_norm = nn.LayerNorm(hidden_size, eps=config.reduction_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The position table (1, [1 +] rows * columns, hidden_size) for a `grid` of (rows, columns)."""
        # A comparison of sizes would be frozen into a traced graph. Resizing to the same size is exact, only slower.
        tracing = torch.jit.is_tracing() or torch.compiler.is_exporting()
        table: torch.Tensor = self.position_embeddings
        if tracing or grid != self.grid:
            table = resize_position_table(table, self.grid, grid, self.num_prefix_rows)
        return table if self.cls_token is not None else table[:, self.num_prefix_rows :]

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        feature_map = self.projection(feature_map)  # (batch, hidden_size, rows, columns)
        grid = (feature_map.shape[2], feature_map.shape[3])
        hidden_states = self.layer_norm(to_tokens(feature_map))  # (batch, rows * columns, hidden_size)
        if self.cls_token is not None:
            cls_token = self.cls_token.expand(hidden_states.shape[0], -1, -1)
            hidden_states = torch.cat([cls_token, hidden_states], dim=1)
        return self.dropout(hidden_states + self.positions(grid)), grid


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, heads, tokens, head_dim) in; (batch, query tokens, heads, head_dim) and the attention map out."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    context = torch.matmul(weights, value).transpose(1, 2).contiguous()
    return context, weights


class PvtEfficientSelfAttention(nn.Module):
    """
    Spatial-reduction attention (paper section 3.3): queries from every token, keys and values from a grid reduced
    by `sequence_reduction_ratio` per side. Rows and columns beyond a multiple of the ratio reach no key, as officially.
    """

    def __init__(self, config: PvtConfig, stage: int):
        super().__init__()
        self.config = config
        hidden_size = config.hidden_sizes[stage]
        self.head_dim = hidden_size // config.num_attention_heads[stage]
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.attention_dropout = config.attention_probs_dropout_prob

        self.query = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.sequence_reduction_ratio = config.sequence_reduction_ratios[stage]
        if self.sequence_reduction_ratio > 1:
            ratio = self.sequence_reduction_ratio
            self.sequence_reduction = nn.Conv2d(hidden_size, hidden_size, kernel_size=ratio, stride=ratio)
            self.layer_norm = nn.LayerNorm(hidden_size, eps=config.reduction_layer_norm_eps)

    def reduce(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(batch, rows * columns, hidden_size) to (batch, rows // R * (columns // R), hidden_size)."""
        if self.sequence_reduction_ratio == 1:
            return hidden_states
        return self.layer_norm(to_tokens(self.sequence_reduction(to_feature_map(hidden_states, grid))))

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        reduced = self.reduce(hidden_states, grid)
        # (batch, tokens, hidden_size) -> (batch, heads, tokens, head_dim)
        query = self.query(hidden_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        key = self.key(reduced).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        value = self.value(reduced).unflatten(2, (-1, self.head_dim)).transpose(1, 2)

        attention: Callable = eager_attention_forward
        # Only the eager function has the maps to return.
        if not kwargs.get("output_attentions", self.config.output_attentions):
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask=None,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return context.flatten(2), weights  # (batch, tokens, hidden_size)


class PvtSelfOutput(nn.Module):
    def __init__(self, config: PvtConfig, stage: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_sizes[stage], config.hidden_sizes[stage])
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.dense(hidden_states))


class PvtAttention(nn.Module):
    def __init__(self, config: PvtConfig, stage: int):
        super().__init__()
        self.self = PvtEfficientSelfAttention(config, stage)
        self.output = PvtSelfOutput(config, stage)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states, weights = self.self(hidden_states, grid, **kwargs)
        return self.output(hidden_states), weights


class PvtFFN(nn.Module):
    def __init__(self, config: PvtConfig, stage: int):
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        self.dense1 = nn.Linear(hidden_size, hidden_size * config.mlp_ratios[stage])
        self.activation = ACT2FN[config.hidden_act]
        self.dense2 = nn.Linear(hidden_size * config.mlp_ratios[stage], hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation(self.dense1(hidden_states)))
        return self.dropout(self.dense2(hidden_states))


class PvtLayer(GradientCheckpointingLayer):
    """Pre-norm block: x += DropPath(attention(norm(x))), then x += DropPath(mlp(norm(x)))."""

    def __init__(self, config: PvtConfig, stage: int, drop_path_rate: float):
        super().__init__()
        self.layer_norm_1 = nn.LayerNorm(config.hidden_sizes[stage], eps=config.layer_norm_eps)
        self.attention = PvtAttention(config, stage)
        self.drop_path = PvtDropPath(drop_path_rate)
        self.layer_norm_2 = nn.LayerNorm(config.hidden_sizes[stage], eps=config.layer_norm_eps)
        self.mlp = PvtFFN(config, stage)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        context, _ = self.attention(self.layer_norm_1(hidden_states), grid, **kwargs)
        hidden_states = hidden_states + self.drop_path(context)
        return hidden_states + self.drop_path(self.mlp(self.layer_norm_2(hidden_states)))


class PvtEncoder(nn.Module):
    """
    The stages of the pyramid, up to `num_stages`. With `has_cls_token`, the last stage has the cls token and the
    final norm follows (the classifier); without, there is neither (dense prediction, official `detection/pvt.py`).
    """

    def __init__(self, config: PvtConfig, has_cls_token: bool, num_stages: int | None = None):
        super().__init__()
        stages = range(config.num_encoder_blocks if num_stages is None else num_stages)
        last = config.num_encoder_blocks - 1
        # linspace(0, rate, blocks) on plain numbers: the model may be built on the meta device
        steps = max(config.num_hidden_layers - 1, 1)
        rates = iter([config.drop_path_rate * block / steps for block in range(config.num_hidden_layers)])
        self.patch_embeddings = nn.ModuleList(
            PvtPatchEmbeddings(
                config, stage, has_cls_token=has_cls_token and stage == last, num_prefix_rows=int(stage == last)
            )
            for stage in stages
        )
        self.block = nn.ModuleList(
            nn.ModuleList(PvtLayer(config, stage, next(rates)) for _ in range(config.depths[stage])) for stage in stages
        )
        self.layer_norm = (
            nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps) if has_cls_token else nn.Identity()
        )

    def run_stage(
        self, stage: int, feature_map: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """The tokens (batch, [1 +] rows * columns, hidden_size) of a stage after its last block, and its grid."""
        hidden_states, grid = self.patch_embeddings[stage](feature_map)
        for layer in self.block[stage]:  # type: ignore[attr-defined]  # a ModuleList, which torch types as Module
            hidden_states = layer(hidden_states, grid, **kwargs)
        return hidden_states, grid

    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        feature_map = pixel_values
        for stage in range(len(self.block)):
            hidden_states, grid = self.run_stage(stage, feature_map, **kwargs)
            if stage < len(self.block) - 1:
                feature_map = to_feature_map(hidden_states, grid)
        return self.layer_norm(hidden_states)


class PvtPreTrainedModel(PreTrainedModel):
    config: PvtConfig
    config_class = PvtConfig
    base_model_prefix = "pvt"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["PvtPatchEmbeddings", "PvtLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The native layout: the output of every block, then that of the final norm.
    _can_record_outputs = {
        "hidden_states": [
            OutputRecorder(PvtLayer, capture_initial_hidden_state=False),
            OutputRecorder(nn.LayerNorm, layer_name="encoder.layer_norm", capture_initial_hidden_state=False),
        ],
        "attentions": OutputRecorder(PvtAttention, index=1),
    }

    if TYPE_CHECKING:  # Transformers would look PvtModel up before it is there
        pvt: PvtModel  # of a classifier
        encoder: PvtEncoder  # of the others

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        The official initialisation: truncated normal for linear weights, tables and cls token; PyTorch's default for
        convolutions (patch projection, sequence reduction), which the official code leaves untouched. The native
        class draws those from the truncated normal too.
        """
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert module.bias is not None
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, PvtPatchEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
            if module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=std)

    def get_input_embeddings(self) -> nn.Conv2d:
        """The convolution that reads the image."""
        encoder = self.pvt.encoder if hasattr(self, "pvt") else self.encoder
        return encoder.patch_embeddings[0].projection  # type: ignore[return-value]  # attributes of a torch Module

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Raises a ValueError for what no PVT can read; casts to the dtype of the weights, as the other models do."""
        if pixel_values is None:
            raise ValueError("pixel_values is missing: give a tensor (batch, channels, height, width).")
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values must have the four dimensions (batch, channels, height, width), got shape "
                f"{tuple(pixel_values.shape)}: a single image needs a batch of one, `pixel_values[None]`."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be floating point, got {pixel_values.dtype}: the image processor scales and "
                "normalises images."
            )
        _, num_channels, height, width = pixel_values.shape
        if num_channels != self.config.num_channels:
            raise ValueError(
                f"pixel_values has {num_channels} channels (shape {tuple(pixel_values.shape)}), the configuration's "
                f"num_channels is {self.config.num_channels}: convert the images, or build the model for this number."
            )
        minimum = self.config.minimum_image_size
        if height < minimum or width < minimum:
            raise ValueError(
                f"pixel_values is {height}x{width} pixels, and a stage would be left without a key below "
                f"{minimum}x{minimum}: resize or pad the images to at least that."
            )
        return pixel_values.to(self.get_input_embeddings().weight.dtype)


class PvtModel(PvtPreTrainedModel):
    """PVT without a head: the tokens of the last stage after the final norm."""

    # Opening a classifier for its features is no fault
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: PvtConfig):
        super().__init__(config)
        self.encoder = PvtEncoder(config, has_cls_token=True)
        self.post_init()

    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """
        Args:
            pixel_values: (batch, num_channels, height, width), float; any height and width of at least
                `config.minimum_image_size` (32 for the paper's models). What exceeds a multiple of 32 at the right
                and bottom is not seen, as in the official code.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` (batch, 1 + rows * columns, hidden_sizes[-1]): the normed tokens, cls first.
            `hidden_states`: one entry per block (batch, tokens, channels), then `last_hidden_state`.
            `attentions`: one per block (batch, heads, query tokens, reduced key tokens), computed eagerly whichever
            attention implementation is set.

        Raises:
            ValueError: wrong rank, dtype, number of channels, or an image below the minimum.
        """
        pixel_values = self._check_pixel_values(pixel_values)
        return BaseModelOutput(last_hidden_state=self.encoder(pixel_values, **kwargs))


class PvtForImageClassification(PvtPreTrainedModel):
    """PVT with a linear classifier on the normed cls token (official `PyramidVisionTransformer`)."""

    def __init__(self, config: PvtConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.pvt = PvtModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: as in [`PvtModel`].
            labels: (batch,) class indices; (batch, num_labels) floats for `problem_type` "multi_label_classification";
                (batch,) or (batch, num_labels) floats for "regression". Where `config.problem_type` is not set, it
                follows from `num_labels` and the dtype, as in all Transformers classifiers.

        Returns:
            `loss` (if labels are given), `logits` (batch, num_labels), and `hidden_states` and `attentions` on request
            as in [`PvtModel`].
        """
        outputs = self.pvt(pixel_values, **kwargs)
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class PvtBackbone(BackboneMixin, PvtPreTrainedModel):
    """
    The feature pyramid for dense prediction: raw outputs of the stages in `config.out_features`, no cls token, no
    norm (official `detection/pvt.py`). Weights of a classification checkpoint load as they are.

    Stages after the last one asked for are not built, so that every parameter has a gradient.
    """

    # The parts of a classification checkpoint that a backbone does without
    _keys_to_ignore_on_load_unexpected = [r"cls_token$", r"encoder\.layer_norm\.", r"^classifier\."]

    def __init__(self, config: PvtConfig):
        super().__init__(config)
        assert config.out_features is not None  # the configuration names the last stage by default
        self.num_features = list(config.hidden_sizes)
        self.encoder = PvtEncoder(
            config, has_cls_token=False, num_stages=config.stage_names.index(config.out_features[-1]) + 1
        )
        self.post_init()

    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values: as in [`PvtModel`].

        Returns:
            `feature_maps`: per stage in `out_features` (batch, hidden_sizes[i], rows_i, columns_i), contiguous, at
            strides 4, 8, 16, 32 (for the paper's patch sizes), grids rounded down.
            `hidden_states`: one entry per block (batch, rows * columns, channels). `attentions` as in [`PvtModel`].

        Raises:
            ValueError: as [`PvtModel`], or `out_features` was set to a stage that the backbone was built without.
        """
        feature_map = self._check_pixel_values(pixel_values)
        built = self.stage_names[: len(self.encoder.block)]
        if self.out_features[-1] not in built:
            raise ValueError(
                f"out_features is {self.out_features}, but this backbone was built up to {built[-1]}: "
                "set out_features in the configuration before building the model."
            )
        feature_maps: tuple[torch.Tensor, ...] = ()
        for stage, name in enumerate(built):
            hidden_states, grid = self.encoder.run_stage(stage, feature_map, **kwargs)
            feature_map = to_feature_map(hidden_states, grid)
            if name in self.out_features:
                feature_maps += (feature_map.contiguous(),)
        return BackboneOutput(feature_maps=feature_maps)  # type: ignore[arg-type]  # there a tuple of exactly one


def build_backbone(backbone_config: PreTrainedConfig) -> PreTrainedModel:
    """
    The backbone of a head, with random weights: a "pvt" is this file's. Not by class, because code loaded from a folder
    may bring the configuration and this file as different modules.
    """
    if backbone_config.model_type == "pvt":
        return PvtBackbone._from_config(backbone_config)
    return AutoBackbone.from_config(backbone_config)


__all__ = [
    "PvtBackbone",
    "PvtForImageClassification",
    "PvtModel",
    "PvtPreTrainedModel",
    "build_backbone",
    "resize_position_table",
]
