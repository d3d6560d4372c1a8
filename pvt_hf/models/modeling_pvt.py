"""
Pyramid Vision Transformer (PVT, arXiv 2102.12122): model, image classifier and backbone, at any image size.

Parameter names are those of Transformers' native PVT, so each class loads the other's weights. The computation follows
the official code: `classification/pvt.py` and `detection/pvt.py` of https://github.com/whai362/PVT (Apache-2.0), branch
v2.
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
from .modeling_fast_checks import is_in_graph, is_plain, may_be_fast
from .modeling_fast_mlp import add_mlp, can_run_in_blocks
from .modeling_fast_patches import can_multiply_patches, multiply_patches


def to_feature_map(hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(batch, rows * columns, channels) to (batch, channels, rows, columns), as a channels-last view without a copy."""
    return hidden_states.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """(batch, channels, rows, columns) to (batch, rows * columns, channels), a view if memory is channels-last."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def project_patches(feature_map: torch.Tensor, projection: nn.Conv2d) -> tuple[torch.Tensor, tuple[int, int]]:
    """
    Applies a convolution with stride = kernel to (batch, channels, height, width). Returns tokens (batch, rows *
    columns, out channels) and the grid (rows, columns).
    """
    if can_multiply_patches(feature_map, projection):
        height, width = projection.kernel_size
        grid = (feature_map.shape[2] // height, feature_map.shape[3] // width)
        return multiply_patches(feature_map, projection), grid
    projected = projection(feature_map)
    return to_tokens(projected), (projected.shape[2], projected.shape[3])


def resize_position_table(
    table: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int], num_prefix_tokens: int = 0
) -> torch.Tensor:
    """
    Resizes a learned position table (paper section 4.2; official `_get_pos_embed`): bilinear, in fp32, with
    align_corners=False, without antialiasing.

    Args:
        table: (1, num_prefix_tokens + rows * columns, channels), row-major, any float dtype.
        grid: (rows, columns) of the table.
        new_grid: (rows, columns) of the result.
        num_prefix_tokens: leading rows that belong to no patch (1 for a cls token). They are kept unchanged.

    Returns:
        (1, num_prefix_tokens + new rows * new columns, channels), in the dtype of `table`.
    """
    prefix, table_2d = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    table_2d = to_feature_map(table_2d, grid)  # (1, channels, rows, columns)
    resized = nn.functional.interpolate(table_2d.float(), size=new_grid, mode="bilinear", align_corners=False)
    resized = to_tokens(resized).to(table.dtype)  # (1, new rows * new columns, channels)
    return torch.cat([prefix, resized], dim=1) if num_prefix_tokens else resized


class PvtDropPath(nn.Module):
    """Stochastic depth: in training, zeroes a residual branch per sample and scales the others by 1 / keep_prob."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def draw_mask(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """(batch, 1, 1), 0 for the samples to drop and 1 for the others; None if no sample can be dropped."""
        if self.drop_prob == 0.0 or not self.training:
            return None
        return hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(1 - self.drop_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mask = self.draw_mask(hidden_states)
        return hidden_states if mask is None else hidden_states * mask / (1 - self.drop_prob)

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"


class PvtPatchEmbeddings(nn.Module):
    """
    The first layer of a stage: (batch, channels, height, width) to tokens (batch, [1 +] rows * columns, hidden_size).

    Patch projection, LayerNorm, optional cls token (after the norm, as in the official code), position embeddings.

    Deviation: each stage resizes its position table unless the grid is its own. The official code compares the number
    of patches with that of *stage 1* instead, which crashes at 448x448 and scrambles positions at 112x448.
    """

    def __init__(self, config: PvtConfig, stage: int, has_cls_token: bool, num_prefix_rows: int):
        super().__init__()
        hidden_size, patch_size = config.hidden_sizes[stage], config.patch_sizes[stage]
        num_channels = config.num_channels if stage == 0 else config.hidden_sizes[stage - 1]
        image_size = config.image_size
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.grid = config.grid_sizes(height, width)[stage]
        # Rows of the table before those of the patches: one in the last stage, for the cls token, used or not
        self.num_prefix_rows = num_prefix_rows

        rows, columns = self.grid
        self.position_embeddings = nn.Parameter(torch.empty(1, num_prefix_rows + rows * columns, hidden_size))
        self.cls_token = nn.Parameter(torch.empty(1, 1, hidden_size)) if has_cls_token else None
        self.projection = nn.Conv2d(num_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.layer_norm = nn.LayerNorm(hidden_size, eps=config.reduction_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The position table (1, [1 +] rows * columns, hidden_size) for a `grid` of (rows, columns)."""
        # Tracing would freeze the result of a comparison. Resizing to the same size changes nothing, it is only slower.
        tracing = torch.jit.is_tracing() or torch.compiler.is_exporting()
        table: torch.Tensor = self.position_embeddings
        if tracing or grid != self.grid:
            table = resize_position_table(table, self.grid, grid, self.num_prefix_rows)
        return table if self.cls_token is not None else table[:, self.num_prefix_rows :]

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        hidden_states, grid = project_patches(feature_map, self.projection)
        hidden_states = self.layer_norm(hidden_states)  # (batch, rows * columns, hidden_size)
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
    """
    Takes query, key and value (batch, heads, tokens, head_dim). Returns (batch, query tokens, heads, head_dim) and the
    attention weights (batch, heads, query tokens, key tokens).
    """
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    context = torch.matmul(weights, value).transpose(1, 2).contiguous()
    return context, weights


class PvtEfficientSelfAttention(nn.Module):
    """
    Spatial-reduction attention (paper section 3.3): one query per token, keys and values from a grid reduced by
    `sequence_reduction_ratio` per side. Rows and columns beyond a multiple of the ratio are not attended to, as in the
    official code.
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
        reduced, _ = project_patches(to_feature_map(hidden_states, grid), self.sequence_reduction)
        return self.layer_norm(reduced)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        reduced = self.reduce(hidden_states, grid)
        # (batch, tokens, hidden_size) -> (batch, heads, tokens, head_dim)
        query = self.query(hidden_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        key = self.key(reduced).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        value = self.value(reduced).unflatten(2, (-1, self.head_dim)).transpose(1, 2)

        attention: Callable = eager_attention_forward
        # Only the eager function returns attention weights.
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
        if (
            (may_be_fast(hidden_states) or is_in_graph(hidden_states))
            and is_plain(self.drop_path, PvtDropPath)
            and is_plain(self.mlp, PvtFFN)
            and can_run_in_blocks(hidden_states, self.layer_norm_2, self.mlp)
        ):
            mask = self.drop_path.draw_mask(hidden_states)
            scale = None if mask is None else mask / (1 - self.drop_path.drop_prob)
            return add_mlp(hidden_states, scale, self.layer_norm_2, self.mlp)
        return hidden_states + self.drop_path(self.mlp(self.layer_norm_2(hidden_states)))


class PvtEncoder(nn.Module):
    """
    The stages of the pyramid, or the first `num_stages`. With `has_cls_token`, for classification, the last stage has a
    cls token and a final norm follows. Without, for dense prediction (official `detection/pvt.py`), there is neither.
    """

    def __init__(self, config: PvtConfig, has_cls_token: bool, num_stages: int | None = None):
        super().__init__()
        stages = range(config.num_encoder_blocks if num_stages is None else num_stages)
        last = config.num_encoder_blocks - 1
        # As torch.linspace, but in plain Python: the model may be built on the meta device.
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
        """Runs a stage. Returns tokens (batch, [1 +] rows * columns, hidden_size) and the grid (rows, columns)."""
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
    # As in the native class: the output of every block, then of the final norm
    _can_record_outputs = {
        "hidden_states": [
            OutputRecorder(PvtLayer, capture_initial_hidden_state=False),
            OutputRecorder(nn.LayerNorm, layer_name="encoder.layer_norm", capture_initial_hidden_state=False),
        ],
        "attentions": OutputRecorder(PvtAttention, index=1),
    }

    if TYPE_CHECKING:  # at run time, Transformers would evaluate the annotation before PvtModel is defined
        pvt: PvtModel  # in a classifier
        encoder: PvtEncoder  # in the other models

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        The official initialisation: truncated normal for linear weights, position tables and cls token; PyTorch's
        default for convolutions (patch projection and sequence reduction). The native class uses the truncated normal
        for convolutions, too.
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
        """Raises a ValueError for invalid input. Returns it in the dtype of the weights, as other models cast it."""
        if pixel_values is None:
            raise ValueError("pixel_values is missing: give a tensor (batch, channels, height, width).")
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values must have the four dimensions (batch, channels, height, width), got shape "
                f"{tuple(pixel_values.shape)}: a single image needs a batch of one, `pixel_values[None]`."
            )
        check_not_empty(pixel_values)
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
                f"pixel_values is {height}x{width} pixels, but below {minimum}x{minimum} a stage has no keys left: "
                "resize or pad the images to at least that."
            )
        return pixel_values.to(self.get_input_embeddings().weight.dtype)


def check_not_empty(pixel_values: torch.Tensor) -> None:
    """Raises a ValueError for a batch without images, on which attention and losses fail with errors of their own."""
    if pixel_values.shape[0] == 0:
        raise ValueError(f"pixel_values has no image (shape {tuple(pixel_values.shape)}): leave out empty batches.")


class PvtModel(PvtPreTrainedModel):
    """PVT without a head: the tokens of the last stage after the final norm."""

    # A classifier may be opened for its features
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: PvtConfig):
        super().__init__(config)
        self.encoder = PvtEncoder(config, has_cls_token=True)
        self.post_init()

    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """
        Args:
            pixel_values: (batch, num_channels, height, width), float. Any height and width of at least
                `config.minimum_image_size` (32 for the paper's models). Grids are rounded down: pixels at the right and
                bottom beyond a multiple of 32 may be ignored, as in the official code.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` (batch, 1 + rows * columns, hidden_sizes[-1]): tokens after the final norm, cls first.
            `hidden_states`: one entry per block (batch, tokens, channels), then `last_hidden_state`.
            `attentions`: one per block (batch, heads, query tokens, reduced key tokens), always computed by the eager
            implementation.

        Raises:
            ValueError: wrong number of dimensions or channels, wrong dtype, or images that are too small.
        """
        pixel_values = self._check_pixel_values(pixel_values)
        return BaseModelOutput(last_hidden_state=self.encoder(pixel_values, **kwargs))


class PvtForImageClassification(PvtPreTrainedModel):
    """PVT with a linear classifier on the cls token after the final norm (official `PyramidVisionTransformer`)."""

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
                (batch,) or (batch, num_labels) floats for "regression". If `config.problem_type` is not set, it follows
                from `num_labels` and the dtype, as in all Transformers classifiers.

        Returns:
            `loss` if labels are given; `logits` (batch, num_labels); on request, `hidden_states` and `attentions` as in
            [`PvtModel`].
        """
        outputs = self.pvt(pixel_values, **kwargs)
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class PvtBackbone(BackboneMixin, PvtPreTrainedModel):
    """
    The feature pyramid for dense prediction: outputs of the stages in `config.out_features`, without cls token and
    final norm (official `detection/pvt.py`). Loads the weights of classification checkpoints unchanged.

    Stages after the last one in `out_features` are not built, so that every parameter gets a gradient.
    """

    # Parts of a classification checkpoint that a backbone does not have
    _keys_to_ignore_on_load_unexpected = [r"cls_token$", r"encoder\.layer_norm\.", r"^classifier\."]
    _can_record_outputs = {
        # Transformers resolves negative indices in `output_hidden_states` by this field of the configuration
        "hidden_states": OutputRecorder(
            PvtLayer, capture_initial_hidden_state=False, num_hidden_layers_key="num_backbone_blocks"
        ),
        "attentions": OutputRecorder(PvtAttention, index=1),
    }

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
            `feature_maps`: for each stage in `out_features` (batch, hidden_sizes[i], rows_i, columns_i), contiguous, at
            strides 4, 8, 16 and 32 with the paper's patch sizes. Grids are rounded down.
            `hidden_states`: one entry per block (batch, rows * columns, channels). `attentions` as in [`PvtModel`].

        Raises:
            ValueError: as [`PvtModel`], or `out_features` was changed to a stage that was not built.
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
    Builds the backbone of a head, with random weights. "pvt" always means the class of this file. AutoBackbone would
    look it up by the configuration's class, which may come from another copy of the module if code is loaded from a
    model's folder.
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
