"""What a training needs besides its data: the model on its device, the optimiser, the schedules, the moving average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn
from transformers import PreTrainedModel

from .epochs import EpochLengths
from .fsdp import prepare_sharded
from .optimizer import DropPathSchedule, make_schedule, parameter_groups
from .settings import TrainingSettings


@dataclass
class Prepared:
    """
    Attributes:
        model: as the training calls it: for several processes and compiled, where the settings say so.
        unwrapped: the model in it.
        ema: the moving average of its weights, if there is one.
        optimizer: Accelerate's wrapper of a fused AdamW.
        scheduler: timm's, of the learning rate.
        drop_path: the schedule of drop path, if there is one.
    """

    model: nn.Module
    unwrapped: Any
    ema: ModelEmaV3 | None
    optimizer: Any
    scheduler: Any
    drop_path: DropPathSchedule | None


def prepare(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: PreTrainedModel,
    lengths: EpochLengths,
    total_steps: int,
) -> Prepared:
    """
    Puts the model on its device, and makes the optimiser, the schedules and the moving average.

    Args:
        total_steps: planned optimiser steps of the training.
    """
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # Transformers' wrapper hides its self
    drop_path = DropPathSchedule(model, settings.drop_path_zero_epochs) if settings.drop_path_zero_epochs else None
    ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
    groups = parameter_groups(model, settings.weight_decay, settings.decay_all, settings.backbone_learning_rate or None)
    # The fused implementation can skip a step by a flag on the device (see `_step`).
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    warmup_steps = settings.warmup_steps or round(settings.warmup_epochs * lengths.steps(0))
    if warmup_steps >= total_steps:
        accelerator.print(
            f"warning: the warm-up of {warmup_steps} steps is not shorter than the training of {total_steps}, "
            f"so the learning rate never reaches {settings.learning_rate:g}: lower --warmup_epochs or "
            "--warmup_steps."
        )
    scheduler = make_schedule(
        optimizer,
        settings.schedule,
        total_steps,
        warmup_steps,
        settings.warmup_learning_rate,
        settings.min_learning_rate,
        settings.poly_power,
        lengths.decay_steps(settings.decay_epochs),
    )
    prepare_all: Any = prepare_sharded if settings.fsdp else Accelerator.prepare
    wrapped, wrapped_optimizer = prepare_all(accelerator, model, optimizer)
    unwrapped = accelerator.unwrap_model(wrapped, keep_torch_compile=False)
    if ema is not None:
        # Each process initialised the model with its own seed. Now all have the weights of the main process.
        ema.to(accelerator.device).set(unwrapped)
        accelerator.register_for_checkpointing(ema)
    return Prepared(wrapped, unwrapped, ema, wrapped_optimizer, scheduler, drop_path)
