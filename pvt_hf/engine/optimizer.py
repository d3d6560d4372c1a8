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
    Groups the trainable parameters for the optimiser: first those with weight decay, then those without.

    One-dimensional parameters (norms, biases) and the cls token have no weight decay. All others have it, including the
    position tables. Source: the official `classification/main.py` with timm's `create_optimizer`.

    Args:
        decay_all: apply weight decay to every parameter, as the official configurations for dense prediction do.
        backbone_learning_rate: learning rate of the parameters below a module named "backbone", which then form two
            more groups (DETR). None: no such groups.
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
    Makes a learning-rate schedule. The rate depends on the step alone: call `step_update(step)` before each optimiser
    step, with steps counted from 0.

    Args:
        optimizer: its groups have the peak learning rates.
        name: shape after the linear warm-up: "cosine" or "poly", (1 - step / total_steps) ** `power`, both down to
            `min_learning_rate`; or "step", divided by 10 at each of `decay_steps`.
        total_steps: optimiser steps of the whole training. The curve starts at step 0, under the warm-up, as in the
            official recipes.
        warmup_steps: length of the warm-up, which begins at `warmup_learning_rate`.

    Deviation: the official classification code changes the rate once per epoch and one call late, so its epochs 0 and 1
    both train at the warm-up rate. Here it changes at every step, as in mmsegmentation's poly schedule.
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
        # timm lowers the rate one step before a milestone. It would also count milestones from the end of the warm-up.
        milestones = [step + 1 for step in decay_steps]
        return MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=0.1, warmup_prefix=False, **shared)
    if name == "poly":
        return PolyLRScheduler(optimizer, power=power, **shared)
    return CosineLRScheduler(optimizer, **shared)


def change_length(scheduler: Any, total_steps: int, decay_steps: Sequence[int] = ()) -> None:
    """Lays a schedule of [`make_schedule`] out for another number of steps, or other `decay_steps`."""
    if isinstance(scheduler, MultiStepLRScheduler):
        scheduler.decay_t = [step + 1 for step in decay_steps]
    else:
        scheduler.t_initial = total_steps


class DropPathSchedule:
    """
    Keeps the drop-path rates at 0 in the first `zero_epochs` epochs, and then restores them.

    The first official code trains PVT-Medium and PVT-Large with 100 such epochs of 300, because they diverge otherwise
    (whai362/PVT, issue 2). Later official configurations clip gradients instead.

    Args:
        model: has drop-path modules like those of Transformers, with a `drop_prob`.
        zero_epochs: number of epochs without drop path.

    Raises:
        ValueError: no drop-path module has a rate above 0.
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
            raise ValueError("--drop_path_zero_epochs: the model has no drop path: give a --drop_path_rate above 0.")

    def set_epoch(self, epoch: int) -> None:
        """Sets the rates for `epoch`, counted from 0."""
        for module, rate in self.rates:
            module.drop_prob = 0.0 if epoch < self.zero_epochs else rate
