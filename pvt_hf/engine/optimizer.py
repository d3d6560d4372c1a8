"""Optimiser groups and learning-rate schedules of the paper's recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_all: bool = False, backbone_learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """
    Two groups, as the official training (`classification/main.py` through timm's `create_optimizer`): no decay on
    parameters of one dimension (norms, biases) and on the cls token; decay on the rest, the position tables among it.
    With `decay_all` everything is decayed, as the official configurations for dense prediction have it.
    With a `backbone_learning_rate`, of DETR, two more groups: the backbone's parameters, at that rate.
    Frozen parameters are left out.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = not decay_all and (parameter.ndim <= 1 or name.endswith("cls_token"))
            in_backbone = backbone_learning_rate is not None and "backbone" in name.split(".")
            groups.setdefault((in_backbone, spared), []).append(parameter)
    return [
        {
            "params": groups.get((in_backbone, spared), []),
            "weight_decay": 0.0 if spared else weight_decay,
            **({"lr": backbone_learning_rate} if in_backbone else {}),
        }
        for in_backbone in ((False,) if backbone_learning_rate is None else (False, True))
        for spared in (False, True)
    ]


def make_schedule(
    optimizer: torch.optim.Optimizer,
    name: str,
    total_steps: int,
    warmup_steps: int,
    warmup_learning_rate: float,
    min_learning_rate: float,
    power: float = 0.9,
    decay_steps: Sequence[int] = (),
) -> Scheduler:
    """
    Linear warm-up, then down to `min_learning_rate` by a cosine or by (1 - step / total_steps) ** `power` ("poly"), or
    to a tenth at each of `decay_steps` ("step"); the curve runs over all steps, warm-up included, as in the official
    recipes. Driven by `step_update(step)`: the rate is
    a function of the step alone.

    The official code for classification updates the rate once per epoch and a call late, so that its epochs 0 and 1
    both train at the warm-up rate; here it moves with every step, as mmsegmentation's poly does.
    """
    shared: dict[str, Any] = {
        "t_initial": total_steps,
        "lr_min": min_learning_rate,
        "warmup_t": warmup_steps,
        "warmup_lr_init": warmup_learning_rate,
        "t_in_epochs": False,
    }
    if name == "step":
        del shared["t_initial"], shared["lr_min"]
        # timm's falls a step before its milestones, and would count them from the end of the warm-up.
        milestones = [step + 1 for step in decay_steps]
        return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=0.1, warmup_prefix=False, **shared)
    if name == "poly":
        return PolyLRScheduler(optimizer, power=power, **shared)
    return CosineLRScheduler(optimizer, **shared)
