"""
Trans2Seg (Segmenting Transparent Object in the Wild with Transformer, arXiv 2101.08461) on any backbone: semantic
segmentation with a transformer decoder, as in section 5.4 of the PVT paper.

Each class has a learned prototype. In a decoder, the prototypes attend to the image. The attention scores after the
last block are the attention maps of the class; a small convolution head turns maps and features into logits.

The model follows section 4 of the Trans2Seg paper. The released code (`segmentron/models/trans2seg.py` and
`segmentron/modules/transformer.py` of https://github.com/xieenze/Trans2Seg) deviates from the paper in places.
Deviations from the code:

- Residual connections are real. In the code, the attention's output replaces the query, and query, features and scores
  are each added to themselves (doubled) before their MLPs. To make up for the loss, it adds the prototypes again before
  every block except the first. Here residuals keep them, so they enter once.
- Heads and classes stay separate axes. In the code a transpose is missing, so that a "head" mixes channels of several
  classes.
- No MLP mixes the positions of a score map. It would tie the weights to one image size; here inputs may have any size.
- Every block contributes. In the code, scores come from inside the last block, and the rest of that block has no
  effect. Here they come after the last block, from its prototypes and features and two projections of their own: the
  prototypes are updated `decoder_layers` times, as in the paper.
- The position table may have any grid, and is resized to any grid. In the code both must be square.
- Resizing uses align_corners=False instead of True, as everywhere in this package, including the post-processing.
- The last convolution has no bias. It would add the same number to all classes, which the softmax cancels.

For synchronised BatchNorm, call `torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)`.
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


# Classes per pass of the head in evaluation. In training all go together, because BatchNorm takes statistics over them.
CLASSES_AT_ONCE = 25


def split_heads(hidden_states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(batch, tokens, channels) to (batch, heads, tokens, head_dim)."""
    return hidden_states.unflatten(2, (num_heads, -1)).transpose(1, 2)


class Trans2SegAttention(nn.Module):
    """Multi-head attention of `queries` (batch, n, channels) to `tokens` (batch, m, channels): (batch, n, channels)."""

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

    Projection, cls token, position embeddings, blocks, norm. As in the released code, the cls token is dropped at the
    end; blocks may use it for information about the whole image.
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
        # Tracing would freeze the result of a comparison. Resizing to the same size changes nothing, it is only slower.
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
    tokens += mlp(norm(tokens)) with a second MLP.
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

    The scores are scaled dot products of prototypes and tokens *without* softmax, as in the Trans2Seg paper and code.
    With a softmax over positions, the map of every class would have the same sum: an absent class would get as much as
    a present one, large objects would get lower values than small ones, and all values would shrink with image size.
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
    A context in which a module works on copies of its buffers, discarded at the end. A second forward pass over the
    same batch then does not change BatchNorm's running statistics. May be entered several times.
    """

    def __init__(self, module: nn.Module):
        self.modules = [child for child in module.modules() if child._buffers]

    def __enter__(self) -> None:
        # The originals are put back as objects, not overwritten: autograd may hold references to them.
        self.buffers = [dict(module.named_buffers(recurse=False)) for module in self.modules]
        for module, buffers in zip(self.modules, self.buffers):
            for name, buffer in buffers.items():
                setattr(module, name, buffer.clone())

    def __exit__(self, *exception: object) -> None:
        for module, buffers in zip(self.modules, self.buffers):
            for name, buffer in buffers.items():
                setattr(module, name, buffer)


class Trans2SegConvLayer(nn.Module):
    """Convolution without bias, BatchNorm and ReLU. Keeps rows and columns."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.batch_norm = nn.BatchNorm2d(out_channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.batch_norm(self.convolution(feature_map)), inplace=True)


def depthwise_layer(channels: int) -> Trans2SegConvLayer:
    """The first half of a separable convolution. The second is a 1x1 `Trans2SegConvLayer`."""
    return Trans2SegConvLayer(channels, channels, kernel_size=3, groups=channels)


class Trans2SegHead(nn.Module):
    """
    The small convolution head: one logit per class and cell, with the same weights for every class.

    For each class, features and attention maps are concatenated and go through two separable convolutions. The result
    is upsampled to the finest feature map and added to its projection. A third separable convolution and a 1x1
    convolution give one channel. BatchNorm takes statistics over images and classes together.

    What does not depend on the class is computed once: features and attention maps go through the first separable
    convolution separately and are then added, so that features are not copied for each class. This is the same as
    concatenating, because depthwise convolution and norm treat channels separately, and a 1x1 convolution of
    concatenated channels is a sum over the parts. (Only Bessel's correction of the running variance differs.)

    In training, the two steps at the finest resolution are computed again in the backward pass. That keeps one instead
    of five activations, each of num_labels * head_channels maps per image. Inside `torch.compile`, the compiler decides
    what to recompute.
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
        Upsamples the coarse map (batch, classes, channels, rows, columns), adds the projected finest map (batch,
        channels, H, W) and runs a depthwise convolution. Returns (batch * classes, channels, H, W).
        """
        batch, classes = coarse.shape[:2]
        enlarged = resize_bilinear(coarse.flatten(0, 1), fine.shape[-2:]).unflatten(0, (batch, classes))
        return self.fine_depthwise((enlarged + fine[:, None]).flatten(0, 1))

    def classify(self, refined: torch.Tensor) -> torch.Tensor:
        """(batch * classes, channels, H, W) to (batch * classes, 1, H, W)."""
        return self.classifier(self.fine_pointwise(refined))

    def recomputed(self, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """`function(*inputs)`. In training, its activations are not kept but recomputed in the backward pass."""
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
        # In evaluation, BatchNorm's statistics are fixed and classes independent: a few at a time save memory.
        parts = [self.score_classes(features, part, fine) for part in scores.split(CLASSES_AT_ONCE, dim=1)]
        return torch.cat(parts, dim=1)


class Trans2SegForSemanticSegmentation(HeadPreTrainedModel):
    """Backbone, Trans2Seg transformer and convolution head. The backbone starts from random weights."""

    config: Trans2SegConfig
    config_class = Trans2SegConfig
    _no_split_modules = ["Trans2SegEncoder", "Trans2SegDecoder", "Trans2SegHead"]
    _can_compile_fullgraph = True

    def __init__(self, config: Trans2SegConfig):
        super().__init__(config)
        channels = self.add_backbone("at least two feature maps, of which it uses the finest and the coarsest", 2)
        self.encoder = Trans2SegEncoder(config, in_channels=channels[-1])
        self.decoder = Trans2SegDecoder(config)
        self.head = Trans2SegHead(config, fine_channels=channels[0])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        Truncated normal for linear weights, position table and cls token; Kaiming-normal (fan-in) for convolutions.
        Prototypes are normal with unit variance, like the queries of DETR: they distinguish the classes, and must
        outweigh what the first blocks add to all of them alike. (The released code uses 0.02, but adds the prototypes
        again before each block.) The backbone initialises itself.
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
            pixel_values: (batch, num_channels, height, width), float, of any size that the backbone accepts.
            labels: (batch, height, width) integers: class indices, or `config.semantic_loss_ignore_index` for pixels
                without a class. Any height and width, usually those of the images: logits are resized to them.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Returns:
            `logits` (batch, num_labels, rows, columns), at the resolution of the finest feature map (stride 4).
            `loss` if labels are given: mean cross-entropy over labelled pixels, fp32.
            `hidden_states` and `attentions` of the backbone, on request.

        Raises:
            ValueError: labels have a wrong shape, dtype or value; or the backbone refuses its input.
        """
        outputs = self.run_backbone(pixel_values, **kwargs)
        fine, coarse = outputs.feature_maps[0], outputs.feature_maps[-1]
        grid = (coarse.shape[2], coarse.shape[3])
        tokens = self.encoder(coarse)  # (batch, rows * columns, hidden_size)
        scores = self.decoder(tokens).unflatten(3, grid)  # (batch, num_labels, heads, rows, columns)
        # Contiguous, because an exporter would add guards on the strides of a view.
        logits = self.head(to_feature_map(tokens, grid).contiguous(), scores, fine)
        loss = None
        if labels is not None:
            loss = semantic_segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Pipelines print an error for class names that are not in this table.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["trans2seg"] = "Trans2SegForSemanticSegmentation"
AutoModelForSemanticSegmentation.register(Trans2SegConfig, Trans2SegForSemanticSegmentation, exist_ok=True)

__all__ = ["Trans2SegForSemanticSegmentation"]
