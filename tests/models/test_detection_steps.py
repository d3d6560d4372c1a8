"""
Two hundred training steps on random scenes, for each detector: losses stay finite and fall, whatever the scenes hold.

    python -m pytest tests/models/test_detection_steps.py
"""

import pytest
import torch

from ..support.common import random_images
from ..support.detection_cases import boxes_only, empty_labels, random_labels
from .test_modeling_mask_rcnn import MaskRcnnForInstanceSegmentation, tiny_mask_rcnn_config
from .test_modeling_pvt_detr import PvtDetrForObjectDetection, tiny_detr_config
from .test_modeling_retinanet import RetinaNetForObjectDetection, tiny_retinanet_config


MODELS = {
    "retinanet": lambda: RetinaNetForObjectDetection(tiny_retinanet_config(num_head_convs=1)),
    "mask_rcnn": lambda: MaskRcnnForInstanceSegmentation(
        tiny_mask_rcnn_config(num_mask_convs=1, num_train_candidates=100, num_proposals=50, box_num_samples=32)
    ),
    "detr": lambda: PvtDetrForObjectDetection(tiny_detr_config(num_queries=15)),
}


@pytest.mark.parametrize("name", MODELS)
def test_two_hundred_steps_stay_finite(name):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(200):
        # a bright rectangle where there is an object; every tenth batch has none at all, every seventh tiny ones
        labels = [empty_labels()] * 2 if step % 10 == 9 else random_labels(2, 64, 64, seed=step)
        if step % 7 == 3:
            for label in labels:
                label["boxes"] = label["boxes"] * torch.tensor([1, 1, 0.03, 0.03])
                label["masks"] = torch.zeros_like(label["masks"])
        images = random_images(2, 64, 64, seed=step) * 0.1
        images = images + torch.stack([label["masks"].float().sum(0).clamp(max=1) for label in labels])[:, None]
        loss = model(images, labels=labels if name == "mask_rcnn" else boxes_only(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert torch.isfinite(loss) and torch.isfinite(norm), (step, loss, norm)
        if step % 10 != 9 and step % 7 != 3:
            losses.append(loss.item())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    # DETR hardly begins to learn in so few steps
    assert sum(losses[-20:]) < (1.0 if name == "detr" else 0.9) * sum(losses[:20])
