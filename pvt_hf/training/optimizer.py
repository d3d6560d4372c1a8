"""Optimiser groups and learning-rate schedules of the paper's recipes."""

from __future__ import annotations

from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float, decay_all: bool = False) -> list[dict[str, Any]]:
    """
    Two groups, as the official training (`classification/main.py` through timm's `create_optimizer`): no decay on
    parameters of one dimension (norms, biases) and on the cls token; decay on the rest, the position tables among it.
    With `decay_all` everything is decayed, as the official configurations for segmentation have it.
    Frozen parameters are left out.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = not decay_all and (parameter.ndim <= 1 or name.endswith("cls_token"))
            (plain if spared else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_schedule(
    optimizer: torch.optim.Optimizer,
    name: str,
    total_steps: int,
    warmup_steps: int,
    warmup_learning_rate: float,
    min_learning_rate: float,
    power: float = 0.9,
) -> Scheduler:
    """
    Linear warm-up, then down to `min_learning_rate` by a cosine or by (1 - step / total_steps) ** `power` ("poly"); the
    curve runs over all steps, warm-up included, as in the official recipes. Driven by `step_update(step)`: the rate is
    a function of the step alone.

    The official code for classification updates the rate once per epoch and a call late, so that its epochs 0 and 1
    both train at the warm-up rate; here it moves with every step, as mmsegmentation's poly does.
    """
    shared = {
        "t_initial": total_steps,
        "lr_min": min_learning_rate,
        "warmup_t": warmup_steps,
        "warmup_lr_init": warmup_learning_rate,
        "t_in_epochs": False,
    }
    if name == "poly":
        return PolyLRScheduler(optimizer, power=power, **shared)
    return CosineLRScheduler(optimizer, **shared)
