"""
A small model of every head in `pvt_hf/families.py`, and the backbones and labels that their tests share.

A new head needs a row in `SMALL`. The tests of pipelines, of the Hub and of model cards then include it.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PvtV2Config, ResNetConfig, SwinConfig
from transformers.modeling_utils import PreTrainedModel

from pvt_hf.families import FAMILIES, load

from .common import randomize, tiny_pvt_config


# Fields of each head's configuration: some thousand parameters
SMALL = {
    "semantic_fpn": {"fpn_channels": 16, "head_channels": 8},
    "trans2seg": {
        "hidden_size": 32, "encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": 4, "head_channels": 8,
        "position_grid": [3, 5],
    },
    "retinanet": {"fpn_channels": 16, "num_head_convs": 2},
    "mask_rcnn": {"fpn_channels": 16, "box_head_size": 32, "num_mask_convs": 2, "max_detections": 20},
    "detr": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 12, "dropout": 0.0,
    },
}  # fmt: skip
NUM_LABELS = 6
HEADS = {name: family for name, family in FAMILIES.items() if family.stages}

BACKBONES = {
    "pvt": lambda stages: tiny_pvt_config(out_features=stages),
    "resnet": lambda stages: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=stages
    ),
    "pvt_v2": lambda stages: PvtV2Config(
        hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], mlp_ratios=[2, 2, 2, 2], out_features=stages
    ),
    "swin": lambda stages: SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=stages
    ),
}


def tiny_head_config(name: str, backbone: str = "pvt", **overrides) -> PreTrainedConfig:
    """The configuration of the family `name`, with six classes unless `num_labels` or `id2label` says otherwise."""
    fields = {"backbone_config": BACKBONES[backbone](list(HEADS[name].stages)), **SMALL[name]}
    if "id2label" not in overrides:
        fields["num_labels"] = NUM_LABELS
    return load(HEADS[name].config)(**{**fields, **overrides})


def tiny_head(name: str, backbone: str = "pvt", **overrides) -> PreTrainedModel:
    """The trained class of the family `name` with random weights and statistics everywhere, in evaluation mode."""
    return randomize_head(load(HEADS[name].models[0].path)(tiny_head_config(name, backbone, **overrides)))


@torch.no_grad()
def randomize_head(model: PreTrainedModel) -> PreTrainedModel:
    """Changes `model` in place to what `tiny_head` returns."""
    randomize_statistics(randomize(model))
    for name, module in model.named_modules():
        if name.endswith("box_regressor"):
            module.weight.mul_(0.1)  # boxes that move a little, not all to the image's border
    return model.eval()


def randomize_statistics(model: nn.Module) -> nn.Module:
    """Random running means and variances, so that evaluation does more than divide by one."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model


def random_label_maps(batch: int, height: int, width: int, num_labels: int = NUM_LABELS, seed: int = 0) -> torch.Tensor:
    """(batch, height, width), int64. A tenth of the labels is 255."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_labels, (batch, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return labels


def random_objects(
    batch: int, height: int, width: int, num_labels: int = NUM_LABELS, seed: int = 0, count: int | None = None
) -> list[dict[str, torch.Tensor]]:
    """One to five objects per image (or `count`), rectangles from a tenth to a half of the image, with their masks."""
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for _ in range(batch):
        objects = count or torch.randint(1, 6, (1,), generator=generator).item()
        sizes = 0.1 + 0.4 * torch.rand(objects, 2, generator=generator)
        centres = sizes / 2 + (1 - sizes) * torch.rand(objects, 2, generator=generator)
        boxes = torch.cat([centres, sizes], dim=1)
        y = (torch.arange(height) + 0.5)[None, :, None] / height
        x = (torch.arange(width) + 0.5)[None, None] / width
        inside_x = (x - boxes[:, 0, None, None]).abs() < boxes[:, 2, None, None] / 2
        inside_y = (y - boxes[:, 1, None, None]).abs() < boxes[:, 3, None, None] / 2
        classes = torch.randint(0, num_labels, (objects,), generator=generator)
        labels.append({"class_labels": classes, "boxes": boxes, "masks": inside_x & inside_y})
    return labels


def no_objects(height: int = 64, width: int = 64) -> dict[str, torch.Tensor]:
    """The labels of an image without objects."""
    return {
        "class_labels": torch.zeros(0, dtype=torch.long),
        "boxes": torch.zeros(0, 4),
        "masks": torch.zeros(0, height, width, dtype=torch.bool),
    }


def boxes_only(labels: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [{key: value for key, value in label.items() if key != "masks"} for label in labels]


def random_labels(name: str, batch: int, height: int, width: int):
    """Labels that the family `name` trains on."""
    if HEADS[name].task == "segmentation":
        return random_label_maps(batch, height, width)
    labels = random_objects(batch, height, width)
    return labels if HEADS[name].masks else boxes_only(labels)
