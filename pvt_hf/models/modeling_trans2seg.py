"""
Trans2Seg (Segmenting Transparent Object in the Wild with Transformer, arXiv 2101.08461) on any backbone: semantic
segmentation with a transformer decoder, as in section 5.4 of the PVT paper.

Every class has one learned prototype. A decoder lets the prototypes look at the image; where each of them would look
next is the class's attention map, and a small convolution head turns map and features into the class's logits.

This is the design that section 4 of the Trans2Seg paper describes. The released code (`segmentron/models/trans2seg.py`
and `segmentron/modules/transformer.py` of https://github.com/xieenze/Trans2Seg) computes something else in places; what
differs here:

- Residuals are residuals. There the query is replaced by the attention's output, and query, features and scores are
  each added to themselves before their MLPs, that is, doubled. The prototypes are then added again in front of every
  block but the first, to bring back what was lost; a true residual keeps them, so here they are added once.
- Heads and classes keep their axes. There a transpose is missing, so that a "head" mixes the channels of several
  classes.
- No MLP along the positions of a score map, which ties the weights to one image size and depends on the order of
  positions. Inputs may have any size.
- All blocks count. There the scores come from inside the last block and the rest of that block is computed in vain.
  Here the scores follow the last block, from its prototypes and features: `decoder_layers` updates, as in the paper,
  then two projections of their own.
- The position table is resized from any grid to any grid, not only square ones.
- Resizing uses align_corners=False, as all of this package does and as the post-processing expects, instead of True.
- The last convolution has no bias: one number added to all classes changes no softmax, and would never learn.

Synchronised BatchNorm: `torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSemanticSegmentation
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_trans2seg import Trans2SegConfig
from .modeling_head import HeadPreTrainedModel
from .modeling_pvt import eager_attention_forward, resize_position_table, to_feature_map, to_tokens
from .modeling_semantic_fpn import resize_bilinear, semantic_segmentation_loss


# Classes that the head computes together in evaluation. In training it takes all, as BatchNorm's statistics ask for.
CLASSES_AT_ONCE = 25


def split_heads(hidden_states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(batch, tokens, channels) to (batch, heads, tokens, head_dim)."""
    return hidden_states.unflatten(2, (num_heads, -1)).transpose(1, 2)


class Trans2SegAttention(nn.Module):
    """Multi-head attention of `queries` (batch, n, channels) to `tokens` (batch, m, channels); returns as `queries`."""

    def __init__(self, config: Trans2SegConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, _ = attention(
            self,
            split_heads(self.query(queries), self.num_heads),
            split_heads(self.key(tokens), self.num_heads),
            split_heads(self.value(tokens), self.num_heads),
            attention_mask=None,
            scaling=self.scaling,
        )
        return self.dense(context.flatten(2))  # from (batch, n, heads, head_dim)


class Trans2SegMlp(nn.Module):
    def __init__(self, config: Trans2SegConfig):
        super().__init__()
        self.dense1 = nn.Linear(config.hidden_size, config.mlp_ratio * config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dense2 = nn.Linear(config.mlp_ratio * config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dense2(self.activation(self.dense1(hidden_states)))


class Trans2SegEncoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: x += attention(norm(x)), then x += mlp(norm(x))."""

    def __init__(self, config: Trans2SegConfig):
        super().__init__()
        self.layer_norm_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Trans2SegAttention(config)
        self.layer_norm_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Trans2SegMlp(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.layer_norm_1(tokens)
        tokens = tokens + self.attention(normed, normed)
        return tokens + self.mlp(self.layer_norm_2(tokens))


class Trans2SegEncoder(nn.Module):
    """
    The coarsest feature map (batch, in_channels, rows, columns) to tokens (batch, rows * columns, hidden_size).

    Projection, a cls token in front (which the released code has, and drops at the end: a place for what concerns the
    whole image), positions, blocks, norm.
    """

    def __init__(self, config: Trans2SegConfig, in_channels: int):
        super().__init__()
        grid = config.position_grid
        self.grid = (grid, grid) if isinstance(grid, int) else (grid[0], grid[1])
        rows, columns = self.grid
        self.projection = nn.Linear(in_channels, config.hidden_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + rows * columns, config.hidden_size))
        self.layers = nn.ModuleList(Trans2SegEncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The position table (1, 1 + rows * columns, hidden_size) for a `grid` of (rows, columns)."""
        # A comparison of sizes would be frozen into a traced graph. Resizing to the same size is exact, only slower.
        tracing = torch.jit.is_tracing() or torch.compiler.is_exporting()
        if not tracing and grid == self.grid:
            return self.position_embeddings
        return resize_position_table(self.position_embeddings, self.grid, grid, num_prefix_tokens=1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        grid = (feature_map.shape[2], feature_map.shape[3])
        tokens = self.projection(to_tokens(feature_map))
        cls_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([cls_token, tokens], dim=1) + self.positions(grid)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.layer_norm(tokens[:, 1:])


class Trans2SegDecoderLayer(GradientCheckpointingLayer):
    """
    Pre-norm block: prototypes += attention(norm(prototypes), norm(tokens)), prototypes += mlp(norm(prototypes)), and
    tokens += mlp(norm(tokens)) with an MLP of their own.
    """

    def __init__(self, config: Trans2SegConfig):
        super().__init__()
        self.prototype_norm_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.token_norm_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Trans2SegAttention(config)
        self.prototype_norm_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.prototype_mlp = Trans2SegMlp(config)
        self.token_norm_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.token_mlp = Trans2SegMlp(config)

    def forward(self, prototypes: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        prototypes = prototypes + self.attention(self.prototype_norm_1(prototypes), self.token_norm_1(tokens))
        prototypes = prototypes + self.prototype_mlp(self.prototype_norm_2(prototypes))
        return prototypes, tokens + self.token_mlp(self.token_norm_2(tokens))


class Trans2SegDecoder(nn.Module):
    """
    Tokens of the encoder (batch, rows * columns, hidden_size) to scores (batch, num_labels, heads, rows * columns).

    The scores are scaled dot products of prototypes and tokens *before* any softmax, as in the Trans2Seg paper, whose
    attention map is the product of prototypes and features, and in its code. A softmax over the positions would let
    every class, present or not, share out the same total over the image: an absent class would get a map as strong as
    a present one's, a large object a weaker one than a small object, and all values would shrink as the image grows.
    """

    def __init__(self, config: Trans2SegConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.prototypes = nn.Parameter(torch.empty(config.num_labels, config.hidden_size))
        self.layers = nn.ModuleList(Trans2SegDecoderLayer(config) for _ in range(config.decoder_layers))
        self.prototype_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.token_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        prototypes = self.prototypes.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            prototypes, tokens = layer(prototypes, tokens)
        query = split_heads(self.query(self.prototype_norm(prototypes)), self.num_heads)
        key = split_heads(self.key(self.token_norm(tokens)), self.num_heads)
        scores = torch.matmul(query * self.scaling, key.transpose(2, 3))  # (batch, heads, num_labels, tokens)
        return scores.transpose(1, 2)


class BufferCopies:
    """
    A context in which a module has copies of its buffers, which are thrown away at the end: a second pass over the same
    batch leaves BatchNorm's running statistics as they are. May be entered again.
    """

    def __init__(self, module: nn.Module):
        self.modules = [child for child in module.modules() if child._buffers]

    def __enter__(self) -> None:
        # Neither swapped for none at all nor written back: autograd has seen these tensors.
        self.buffers = [dict(module.named_buffers(recurse=False)) for module in self.modules]
        for module, buffers in zip(self.modules, self.buffers):
            for name, buffer in buffers.items():
                setattr(module, name, buffer.clone())

    def __exit__(self, *exception: object) -> None:
        for module, buffers in zip(self.modules, self.buffers):
            for name, buffer in buffers.items():
                setattr(module, name, buffer)


class Trans2SegConvLayer(nn.Module):
    """Convolution without bias, BatchNorm, ReLU: (batch, in_channels, rows, columns) to out_channels, same size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.batch_norm = nn.BatchNorm2d(out_channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.batch_norm(self.convolution(feature_map)), inplace=True)


def depthwise_layer(channels: int) -> Trans2SegConvLayer:
    """The first half of a separable convolution; a `Trans2SegConvLayer` of 1x1 is the second."""
    return Trans2SegConvLayer(channels, channels, kernel_size=3, groups=channels)


class Trans2SegHead(nn.Module):
    """
    The small convolution head: a logit per class and cell, by the same weights for every class.

    For each class: features and the class's attention maps, concatenated, through two separable convolutions; enlarged
    to the finest feature map and added to a projection of it; a third separable convolution and a 1x1 convolution to
    one channel. BatchNorm takes its statistics over images and classes together.

    What does not depend on the class is computed once. A depthwise convolution and its norm treat channels apart, and
    a 1x1 convolution of concatenated channels is the sum of one of each part; so features and attention maps go through
    the first separable convolution separately and are added, with no copy of the features per class. (Statistics of the
    copies would be the same, but for Bessel's correction of the running variance.)

    The two steps at the finest resolution are computed again in the backward pass (always, in training), so that of
    their activations, each num_labels * head_channels maps per image, one is kept and not five. Inside `torch.compile`
    that choice is left to the compiler.
    """

    def __init__(self, config: Trans2SegConfig, fine_channels: int):
        super().__init__()
        channels, heads = config.head_channels, config.num_attention_heads
        self.feature_depthwise = depthwise_layer(config.hidden_size)
        self.feature_pointwise = nn.Conv2d(config.hidden_size, channels, kernel_size=1, bias=False)
        self.score_depthwise = depthwise_layer(heads)
        self.score_pointwise = nn.Conv2d(heads, channels, kernel_size=1, bias=False)
        self.sum_norm = nn.BatchNorm2d(channels)
        self.coarse_depthwise = depthwise_layer(channels)
        self.coarse_pointwise = Trans2SegConvLayer(channels, channels)
        self.fine_projection = Trans2SegConvLayer(fine_channels, channels)
        self.fine_depthwise = depthwise_layer(channels)
        self.fine_pointwise = Trans2SegConvLayer(channels, channels)
        self.classifier = nn.Conv2d(channels, 1, kernel_size=1, bias=False)

    def refine(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """
        Detail for every class: (batch, classes, channels, rows, columns) and the projected finest map (batch, channels,
        H, W) to (batch * classes, channels, H, W).
        """
        batch, classes = coarse.shape[:2]
        enlarged = resize_bilinear(coarse.flatten(0, 1), fine.shape[-2:]).unflatten(0, (batch, classes))
        return self.fine_depthwise((enlarged + fine[:, None]).flatten(0, 1))

    def classify(self, refined: torch.Tensor) -> torch.Tensor:
        """(batch * classes, channels, H, W) to (batch * classes, 1, H, W)."""
        return self.classifier(self.fine_pointwise(refined))

    def recomputed(self, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """`function(*inputs)`; in training its activations are dropped, and made again in the backward pass."""
        if not self.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return function(*inputs)
        # The second pass would update the running statistics a second time.
        contexts = nullcontext(), BufferCopies(self)
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts)

    def score_classes(self, features: torch.Tensor, scores: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """
        Logits (batch, classes, H, W) from the class-independent part (batch, channels, rows, columns), the scores
        (batch, classes, heads, rows, columns) and the projected finest map (batch, channels, H, W).
        """
        batch, classes = scores.shape[:2]
        maps = self.score_pointwise(self.score_depthwise(scores.flatten(0, 1))).unflatten(0, (batch, classes))
        maps = (maps + features[:, None]).flatten(0, 1)  # (batch * classes, channels, rows, columns)
        maps = nn.functional.relu(self.sum_norm(maps))
        maps = self.coarse_pointwise(self.coarse_depthwise(maps)).unflatten(0, (batch, classes))
        logits = self.recomputed(self.classify, self.recomputed(self.refine, maps, fine))
        return logits.unflatten(0, (batch, classes)).squeeze(2)

    def forward(self, features: torch.Tensor, scores: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features: (batch, hidden_size, rows, columns) of the encoder.
            scores: (batch, num_labels, heads, rows, columns) of the decoder.
            fine: (batch, fine_channels, H, W), the finest feature map of the backbone.

        Returns:
            Logits (batch, num_labels, H, W).
        """
        features = self.feature_pointwise(self.feature_depthwise(features))
        fine = self.fine_projection(fine)
        if self.training:
            return self.score_classes(features, scores, fine)
        # With fixed statistics no class depends on another, so that memory need not grow with their number.
        parts = [self.score_classes(features, part, fine) for part in scores.split(CLASSES_AT_ONCE, dim=1)]
        return torch.cat(parts, dim=1)


class Trans2SegForSemanticSegmentation(HeadPreTrainedModel):
    """A backbone, the Trans2Seg transformer and its convolution head. The backbone starts from random weights."""

    config: Trans2SegConfig
    config_class = Trans2SegConfig
    _no_split_modules = ["Trans2SegEncoder", "Trans2SegDecoder", "Trans2SegHead"]
    _can_compile_fullgraph = True

    def __init__(self, config: Trans2SegConfig):
        super().__init__(config)
        channels = self.add_backbone("two feature maps, the finest and the coarsest of the backbone's", 2)
        self.encoder = Trans2SegEncoder(config, in_channels=channels[-1])
        self.decoder = Trans2SegDecoder(config)
        self.head = Trans2SegHead(config, fine_channels=channels[0])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        Truncated normal for linear weights, positions and cls token; Kaiming-normal by inputs for convolutions (of a
        depthwise one, each channel has one input). Normal of unit variance for prototypes, like the queries of DETR:
        they are what tells the classes apart, and have to stay larger than what the first blocks add to all of them
        alike. (0.02 in the released code, which adds them again in front of the blocks.)
        The backbone initialises itself.
        """
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, Trans2SegEncoder):
            init.trunc_normal_(module.position_embeddings, std=std)
            init.trunc_normal_(module.cls_token, std=std)
        elif isinstance(module, Trans2SegDecoder):
            init.normal_(module.prototypes)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values: (batch, num_channels, height, width), float, of any size that the backbone takes.
            labels: (batch, height, width) integers, `config.semantic_loss_ignore_index` where a pixel has no label.
                Usually of the images' size; the logits are resized to whatever size they have.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `logits` (batch, num_labels, rows, columns) at the resolution of the finest feature map, stride 4.
            `loss` (if labels are given): the mean cross-entropy over labelled pixels, fp32.
            `hidden_states` and `attentions` on request, as the backbone gives them.

        Raises:
            ValueError: what the backbone raises for its input; labels of a wrong shape, dtype or value.
        """
        outputs = self.backbone.forward_with_filtered_kwargs(pixel_values, **kwargs)
        fine, coarse = outputs.feature_maps[0], outputs.feature_maps[-1]
        grid = (coarse.shape[2], coarse.shape[3])
        tokens = self.encoder(coarse)  # (batch, rows * columns, hidden_size)
        scores = self.decoder(tokens).unflatten(3, grid)  # (batch, num_labels, heads, rows, columns)
        # Contiguous: an exporter would guard on the strides of a view.
        logits = self.head(to_feature_map(tokens, grid).contiguous(), scores, fine)
        loss = None
        if labels is not None:
            loss = semantic_segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Pipelines look the name up in this table and print an error if it is not there.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["trans2seg"] = "Trans2SegForSemanticSegmentation"
AutoModelForSemanticSegmentation.register(Trans2SegConfig, Trans2SegForSemanticSegmentation, exist_ok=True)

__all__ = ["Trans2SegForSemanticSegmentation"]
