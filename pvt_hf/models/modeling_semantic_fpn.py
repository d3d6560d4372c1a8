"""
Semantic FPN (Panoptic Feature Pyramid Networks, arXiv 1901.02446) on any backbone: semantic segmentation as in
section 5.3 of the PVT paper.

Follows mmsegmentation's `FPN`, `FPNHead` and `BaseDecodeHead` in the official configuration
`segmentation/configs/_base_/models/fpn_r50.py` of https://github.com/whai362/PVT. That configuration synchronises
BatchNorm between GPUs; to do so here, call `torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)`.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_semantic_fpn import SemanticFpnConfig
from .modeling_fpn import FeaturePyramidNetwork, FpnConv2d
from .modeling_head import HeadPreTrainedModel


def resize_bilinear(feature_map: torch.Tensor, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Resizes (batch, channels, rows, columns) to `size`, with align_corners=False, without antialiasing."""
    # Tracing would freeze the result of a comparison. Resizing to the same size changes nothing, it is only slower.
    tracing = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if not tracing and feature_map.shape[-2:] == size:
        return feature_map
    return nn.functional.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


def semantic_segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """
    Mean cross-entropy over labelled pixels. Logits are resized to the size of the labels (bilinear, in fp32).

    Args:
        logits: (batch, num_labels, rows, columns).
        labels: (batch, height, width), any integer dtype: class indices or `ignore_index`.
        ignore_index: label of pixels without a class.

    Returns:
        A scalar in fp32: zero, with zero gradients, if no pixel has a class.

    Raises:
        ValueError: labels have a wrong shape or a floating dtype, or a value is neither a class nor `ignore_index`.
            (Values are not checked in compiled code.)
    """
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0] or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape (batch, height, width) for a batch of {logits.shape[0]}, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    num_labels, labels = logits.shape[1], labels.long()
    is_labelled = labels != ignore_index
    if not torch.compiler.is_compiling():
        unknown = labels[is_labelled & ((labels < 0) | (labels >= num_labels))].unique().tolist()
        if unknown:
            raise ValueError(
                f"labels hold {', '.join(map(str, unknown[:5]))}{' ...' * (len(unknown) > 5)}: with num_labels "
                f"{num_labels} they must be 0 to {num_labels - 1}, or {ignore_index} for pixels to ignore. Correct the "
                "maps, or the configuration."
            )
    logits = resize_bilinear(logits.float(), labels.shape[-2:])
    total = nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / is_labelled.sum().clamp(min=1)


class SemanticFpnConvLayer(nn.Module):
    """3x3 convolution without bias, BatchNorm and ReLU. Keeps rows and columns."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(out_channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.batch_norm(self.convolution(feature_map)))


class SemanticFpnHead(nn.Module):
    """
    Brings all levels to the resolution of the finest, adds them up and classifies each cell. Level i (0 is the finest)
    has max(1, i) convolutions; from level 1 on, a bilinear upsampling by 2 follows each.
    """

    def __init__(self, config: SemanticFpnConfig, num_levels: int):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(
                SemanticFpnConvLayer(config.fpn_channels if index == 0 else config.head_channels, config.head_channels)
                for index in range(max(1, level))
            )
            for level in range(num_levels)
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(config.head_channels, config.num_labels, kernel_size=1)

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        finest_size = feature_maps[0].shape[-2:]
        total = None
        for level, (layers, feature_map) in enumerate(zip(self.levels, feature_maps)):
            for layer in layers:  # type: ignore[attr-defined]  # a ModuleList, which torch types as Module
                feature_map = layer(feature_map)
                if level > 0:
                    rows, columns = feature_map.shape[-2:]
                    feature_map = resize_bilinear(feature_map, (2 * rows, 2 * columns))
            # If grids were rounded down, doubling them misses the finest grid by a few cells.
            feature_map = resize_bilinear(feature_map, finest_size)
            total = feature_map if total is None else total + feature_map
        return self.classifier(self.dropout(total))  # (batch, num_labels, rows, columns)


class SemanticFpnForSemanticSegmentation(HeadPreTrainedModel):
    """Backbone, FPN neck and Semantic FPN head. The backbone starts from random weights."""

    config: SemanticFpnConfig
    config_class = SemanticFpnConfig
    _no_split_modules = ["FeaturePyramidNetwork", "SemanticFpnHead"]
    _can_compile_fullgraph = True

    def __init__(self, config: SemanticFpnConfig):
        super().__init__(config)
        channels = self.add_backbone("four feature maps, at strides 4, 8, 16 and 32", 4, 4)
        self.neck = FeaturePyramidNetwork(channels, config.fpn_channels)
        self.head = SemanticFpnHead(config, num_levels=len(channels))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        As mmsegmentation: Xavier-uniform in the neck, Kaiming-normal (fan-out) in the 3x3 convolutions of the head,
        normal with standard deviation 0.01 in the classifier. The backbone initialises itself.
        """
        super()._init_weights(module)
        if isinstance(module, FpnConv2d):
            module.reset_parameters()
        elif module is self.head.classifier:
            init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

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
        logits = self.head(self.neck(outputs.feature_maps))
        loss = None
        if labels is not None:
            loss = semantic_segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Pipelines print an error for class names that are not in this table.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["semantic_fpn"] = "SemanticFpnForSemanticSegmentation"
AutoModelForSemanticSegmentation.register(SemanticFpnConfig, SemanticFpnForSemanticSegmentation, exist_ok=True)

__all__ = ["SemanticFpnForSemanticSegmentation"]
