"""Labels and backbones that the tests of detectors share."""

import torch
from transformers import PvtV2Config, ResNetConfig, SwinConfig

from .common import random_images, tiny_pvt_config


# By the stages that a head wants
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


def random_labels(
    batch: int, height: int, width: int, num_labels: int = 6, seed: int = 0, count: int | None = None
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


def empty_labels(height: int = 64, width: int = 64) -> dict[str, torch.Tensor]:
    return {
        "class_labels": torch.zeros(0, dtype=torch.long),
        "boxes": torch.zeros(0, 4),
        "masks": torch.zeros(0, height, width, dtype=torch.bool),
    }


def boxes_only(labels: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [{key: value for key, value in label.items() if key != "masks"} for label in labels]


def assert_extreme_boxes_train(model) -> None:
    """Boxes of one pixel, without a width, and a thousand in one image: finite loss and gradients."""
    one_pixel = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 1 / 64, 1 / 64]])}
    flat = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.0, 0.2]])}
    many = boxes_only(random_labels(1, 64, 64, count=1000))[0]
    model.train()
    for labels in ([one_pixel, flat], [many, one_pixel]):
        model.zero_grad()
        loss = model(random_images(2, 64, 64), labels=labels).loss
        loss.backward()
        assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters())
