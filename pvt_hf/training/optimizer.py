"""Optimiser groups and learning-rate schedule of the paper's recipe."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """
    Two groups, as the official training (`classification/main.py` through timm's `create_optimizer`): no decay on
    parameters of one dimension (norms, biases) and on the cls token; decay on the rest, the position tables among it.
    Frozen parameters are left out.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name.endswith("cls_token") else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def cosine_schedule(
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    warmup_steps: int,
    warmup_learning_rate: float,
    min_learning_rate: float,
) -> CosineLRScheduler:
    """
    Linear warm-up, then cosine to `min_learning_rate`; the cosine runs over all steps, warm-up included, as in the
    official recipe. Driven by `step_update(step)`: the rate is a function of the step alone.

    The official code updates the rate once per epoch and a call late, so that its epochs 0 and 1 both train at the
    warm-up rate; here it moves with every step.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=total_steps,
        lr_min=min_learning_rate,
        warmup_t=warmup_steps,
        warmup_lr_init=warmup_learning_rate,
        t_in_epochs=False,
    )
