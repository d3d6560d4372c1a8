"""Parameter groups, learning-rate schedules and the drop-path schedule of the paper's recipes."""

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
    The optimiser's parameter groups, without frozen parameters.

    Parameters of one dimension (norms, biases) and the cls token get no weight decay; all others, position tables
    included, do. Source: the official `classification/main.py` with timm's `create_optimizer`.

    Args:
        decay_all: decay every parameter, as the official configurations for dense prediction do.
        backbone_learning_rate: learning rate of two more groups, the parameters below a module named "backbone" (DETR).
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            not_decayed = not decay_all and (parameter.ndim <= 1 or name.endswith("cls_token"))
            in_backbone = backbone_learning_rate is not None and "backbone" in name.split(".")
            groups.setdefault((in_backbone, not_decayed), []).append(parameter)
    return [
        {
            "params": groups.get((in_backbone, not_decayed), []),
            "weight_decay": 0.0 if not_decayed else weight_decay,
            **({"lr": backbone_learning_rate} if in_backbone else {}),
        }
        for in_backbone in ((False,) if backbone_learning_rate is None else (False, True))
        for not_decayed in (False, True)
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
    A learning rate that is a function of the step alone: call `step_update(step)` before each optimiser step.

    Args:
        name: what follows the linear warm-up. "cosine", or "poly" with (1 - step / total_steps) ** `power`, down to
            `min_learning_rate`; or "step", divided by 10 at each of `decay_steps`.
        total_steps: optimiser steps of the whole training. The curve includes the warm-up, as in the official recipes.

    The official classification code changes the rate once per epoch and one call late, so that its epochs 0 and 1 both
    train at the warm-up rate. Here it changes with every step, as in mmsegmentation's poly schedule.
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
        # timm drops the rate one step before a milestone, and would count milestones from the end of the warm-up.
        milestones = [step + 1 for step in decay_steps]
        return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=0.1, warmup_prefix=False, **shared)
    if name == "poly":
        return PolyLRScheduler(optimizer, power=power, **shared)
    return CosineLRScheduler(optimizer, **shared)


class DropPathSchedule:
    """
    Keeps drop path at 0 before epoch `zero_epochs`, then gives every layer its own rate.

    The first official code trains PVT-Medium and -Large with 100 such epochs of 300, because they diverge otherwise
    (whai362/PVT, issue 2). Later official configurations clip gradients instead.

    Args:
        model: has modules with a `drop_prob`, as Transformers' drop-path modules do.

    Raises:
        ValueError: no such module has a rate above 0.
    """

    def __init__(self, model: nn.Module, zero_epochs: int):
        self.zero_epochs = zero_epochs
        modules: list[Any] = list(model.modules())
        self.rates: list[tuple[Any, float]] = [
            (module, module.drop_prob)
            for module in modules
            if type(module).__name__.endswith("DropPath") and getattr(module, "drop_prob", None)
        ]
        if not self.rates:
            raise ValueError("--drop_path_zero_epochs: the model has no drop path; give a --drop_path_rate above 0.")

    def set_epoch(self, epoch: int) -> None:
        """Sets the rates of `epoch`, counted from 0."""
        for module, rate in self.rates:
            module.drop_prob = 0.0 if epoch < self.zero_epochs else rate
