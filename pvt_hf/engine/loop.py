"""
The training loop that every task shares: one linear pass, on one process or many.

A task gives a model, a [`BatchStream`], a loss and an evaluation. Every process takes the same number of steps: before
each step the processes agree whether all of them have a batch, and the epoch ends for all when one has none left.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from timm.utils import ModelEmaV3
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.batches import BatchStream, StreamError
from ..data.fingerprint import stream_fingerprint
from ..tasks.models import share_buffers
from .checkpoints import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from .drop_path import DropPathSchedule
from .feed import Batch, Feed
from .fsdp import prepare_sharded
from .optimizer import make_schedule, parameter_groups
from .processes import agree, gather_objects
from .settings import TrainingSettings


def steps_per_epoch(settings: TrainingSettings, num_samples: int | None, world_size: int) -> int:
    """
    Optimiser steps of one epoch in full batches.

    Raises:
        ValueError: the length is unknown, or there is less than one step in it.
    """
    if num_samples == 0:
        raise ValueError("The training stream is empty.")
    num_samples = settings.samples_per_epoch or num_samples
    if num_samples is None:
        raise ValueError("The source does not say how many samples it has: give --samples_per_epoch.")
    per_step = settings.batch_size * settings.gradient_accumulation_steps * world_size
    if num_samples < per_step:
        raise ValueError(
            f"{num_samples} samples do not fill one step of {per_step} (batch size x accumulation x processes): "
            "use a smaller --batch_size."
        )
    return num_samples // per_step


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a wish that the loop reads between two steps; a second Ctrl-C interrupts now."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> StopSignal:
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def train(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: PreTrainedModel,
    batches: BatchStream,
    num_samples: int | None,
    compute_loss: Callable[[nn.Module, Batch], torch.Tensor],
    evaluate: Callable[[nn.Module], dict[str, float]],
    best_metric: str,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """
    Trains `model`, with checkpoints in `settings.output_dir`, resuming if the settings say so.

    Args:
        batches: this process' part of the training stream.
        num_samples: samples of one epoch over all processes, if known.
        compute_loss: (prepared model, batch on the device) to a scalar; anything random in it (mixing) draws from the
            global generators, whose states are in the checkpoints.
        evaluate: called by every process with the unwrapped model (its average, with `ema_decay`) in eval mode; returns
            the same metrics on each; those that are numbers are printed and go to the trackers.
        best_metric: of the metrics, the one whose highest value is reported as the best.

    Returns:
        The unwrapped model or its average, and a report: `history` (list of dicts by step; a loss is the mean over the
        processes), `metrics` (the last evaluation), `best_metrics`, `steps`, `trained`, `skipped` and `dropped`
        (samples over all processes; dropped are those of incomplete batches and of processes with more than others),
        `skipped_samples` (some, with reasons), `nonfinite_steps`, `seconds`, `images_per_second` (since the start or
        the resume, without evaluation), `data_fingerprint`, `interrupted` (None or the signal's name).

    Raises:
        FloatingPointError: a loss is not finite; the message has the step, the samples and the last checkpoint.
        StreamError: the data cannot be read on; a checkpoint of the last step is saved.
        ValueError: the checkpoint is of other data or another number of processes.
    """
    per_epoch = steps_per_epoch(settings, num_samples, accelerator.num_processes)
    total_steps = settings.max_steps or per_epoch * settings.epochs
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # Transformers' wrapper hides its self
    drop_path = DropPathSchedule(model, settings.drop_path_zero_epochs) if settings.drop_path_zero_epochs else None
    ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
    groups = parameter_groups(model, settings.weight_decay, settings.decay_all, settings.backbone_learning_rate or None)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    scheduler = make_schedule(
        optimizer,
        settings.schedule,
        total_steps,
        settings.warmup_steps or round(settings.warmup_epochs * per_epoch),
        settings.warmup_learning_rate,
        settings.min_learning_rate,
        settings.poly_power,
        [round(epoch * per_epoch) for epoch in settings.decay_epochs],
    )
    if settings.fsdp:
        model, optimizer = prepare_sharded(accelerator, model, optimizer)
    else:
        model, optimizer = accelerator.prepare(model, optimizer)
    unwrapped = accelerator.unwrap_model(model, keep_torch_compile=False)
    if ema is not None:
        ema.to(accelerator.device).set(unwrapped)  # other processes began with other weights and have taken the first's
        accelerator.register_for_checkpointing(ema)

    counts: dict[str, Any] = {"trained": 0, "skipped": 0, "dropped": 0, "skipped_samples": []}
    state: dict[str, Any] = {
        "step": 0,
        "epoch": 0,
        "epoch_start": 0,
        "world_size": accelerator.num_processes,
        "data_fingerprint": stream_fingerprint(batches.stream),
        "settings": asdict(settings),
        "history": [],
        "seconds": 0.0,
        "nonfinite_steps": 0,
        "nonfinite_in_a_row": 0,
        "evaluation_due": False,
    }
    stream_state = None
    if settings.resume_from_checkpoint:
        checkpoint = find_checkpoint(settings.output_dir, settings.resume_from_checkpoint)
        if checkpoint is not None:
            state, stream_state = load_checkpoint(accelerator, checkpoint, state)
            counts = state.pop("counts")[accelerator.process_index]
            state["settings"] = asdict(settings)
            accelerator.print(f"Resumed from {checkpoint} (epoch {state['epoch']}, step {state['step']}).")
        else:
            accelerator.print(f"No checkpoint in {settings.output_dir} yet: starting from the beginning.")
    if accelerator.is_main_process:
        remove_leftovers(settings.output_dir)

    start_time, start_seconds = time.perf_counter(), state["seconds"]
    trained_before, busy_seconds = counts["trained"], 0.0
    progress = tqdm(
        total=total_steps, initial=state["step"], disable=not accelerator.is_main_process, unit="step", smoothing=0.05
    )

    def save(stream: dict[str, Any] | None) -> None:
        if state["nonfinite_in_a_row"] and interrupted is None:
            return  # a training that diverges must not push out the checkpoints from before
        state["seconds"] = start_seconds + time.perf_counter() - start_time
        save_checkpoint(
            accelerator,
            settings.output_dir,
            {**state, "counts": gather_objects(accelerator, counts)},
            stream,
            settings.save_total_limit,
        )

    def images_per_second() -> float:
        return (counts["trained"] - trained_before) * accelerator.num_processes / max(busy_seconds, 1e-9)

    def totals() -> dict[str, int]:
        parts = gather_objects(accelerator, counts)
        summed = {name: sum(part[name] for part in parts) for name in counts if name != "skipped_samples"}
        if batches.keep is None and not bounded and not settings.max_steps:
            # Exact where the length is: a process that ends early leaves samples of the others unread.
            summed["dropped"] = num_samples * state["epoch"] - summed["trained"] - summed["skipped"]
        return summed | {"skipped_samples": [sample for part in parts for sample in part["skipped_samples"]]}

    # An epoch ends with the samples, or after a length of its own, or with the whole training.
    bounded = settings.samples_per_epoch > 0 or settings.repeated_augmentation > 1

    def is_finished() -> bool:
        if settings.max_steps:  # and the last epoch is closed, that is, evaluated
            return state["step"] >= total_steps and state["epoch_start"] == state["step"]
        return state["epoch"] >= settings.epochs

    of_epochs, of_steps = ("", f"/{total_steps}") if settings.max_steps else (f"/{settings.epochs}", "")

    def close_epoch() -> None:
        """Evaluates if it is time, says where the training stands, and saves."""
        shown = ""
        if state["evaluation_due"]:
            evaluated = (unwrapped if ema is None else ema.module).eval()
            share_buffers(accelerator, evaluated)
            metrics = evaluate(evaluated)
            state["history"].append({"step": state["step"], "epoch": state["epoch"] - 1, **metrics})
            numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            accelerator.log(numbers, step=state["step"])
            shown = "".join(f", {name} {value:.4g}" for name, value in numbers.items())
            state["evaluation_due"] = False
        if state["nonfinite_steps"]:
            shown += f", {state['nonfinite_steps']} steps dropped because of a loss that is not finite"
        seen = totals()
        if accelerator.is_main_process:
            tqdm.write(
                f"epoch {state['epoch']}{of_epochs}: step {state['step']}{of_steps}, "
                f"{seen['trained']} samples trained, {seen['skipped']} skipped, "
                f"{seen['dropped']} left over so far{shown}"
            )
        save(None)

    interrupted = None
    with StopSignal() as stop, progress:
        if state["evaluation_due"]:
            close_epoch()
        elif is_finished():
            accelerator.print("The training was finished: there is nothing left to do but to save the model.")
        while not is_finished():
            epoch = state["epoch"]
            batches.set_epoch(epoch)
            if drop_path is not None:
                drop_path.set_epoch(epoch)
            feed = Feed(batches, settings, accelerator, stream_state, counts)
            stream_state = None
            limits = [state["epoch_start"] + per_epoch - state["step"]] if bounded else []
            limits += [total_steps - state["step"]] if settings.max_steps else []
            model.train()
            tick = time.perf_counter()
            try:
                for group in feed.groups(min(limits, default=None)):
                    scheduler.step_update(state["step"])
                    loss = _step(accelerator, settings, model, optimizer, compute_loss, group, state)
                    state["step"] += 1
                    if ema is not None:
                        ema.update(unwrapped, step=state["step"])
                    busy_seconds += time.perf_counter() - tick
                    progress.update()
                    if state["step"] % settings.log_every_steps == 0 or state["step"] == 1:
                        values = {
                            "loss": accelerator.reduce(loss, "mean").item(),
                            "learning_rate": optimizer.param_groups[0]["lr"],
                        }
                        state["history"].append({"step": state["step"], "epoch": epoch, **values})
                        rate = images_per_second()
                        accelerator.log({**values, "images_per_second": rate}, step=state["step"])
                        progress.set_postfix(
                            loss=f"{values['loss']:.3f}",
                            lr=f"{values['learning_rate']:.1e}",
                            img_s=f"{rate:.0f}",
                            refresh=False,
                        )
                    # One decision for all: a signal reaches the processes at different moments.
                    if agree(accelerator, stop.received is not None, "any"):
                        interrupted = stop.received or "a signal to another process"
                    if interrupted or (settings.save_every_steps and state["step"] % settings.save_every_steps == 0):
                        save(feed.stream_state)
                    if interrupted:
                        break
                    tick = time.perf_counter()
            except StreamError as error:
                save(feed.stream_state)
                raise StreamError(
                    f"{error}\nStopped at step {state['step']}, with a checkpoint in {settings.output_dir}: mend the "
                    "data and go on with --resume_from_checkpoint latest."
                ) from error
            if interrupted:
                break
            if state["step"] == state["epoch_start"]:
                raise ValueError(
                    f"{batches.stream.name} did not fill a single step of {settings.batch_size} samples per process "
                    f"({counts['skipped']} skipped, {counts['dropped']} left over): use a smaller --batch_size or "
                    "fewer --num_workers."
                )
            state["epoch"], state["epoch_start"] = epoch + 1, state["step"]
            state["evaluation_due"] = is_finished() or (epoch + 1) % settings.eval_every_epochs == 0
            if state["evaluation_due"]:
                save(None)  # an evaluation may take long, and be killed
            close_epoch()
    evaluations = [
        {name: value for name, value in entry.items() if name not in ("step", "epoch")} | {"epoch": entry["epoch"]}
        for entry in state["history"]
        if "loss" not in entry
    ]
    report = {
        "steps": state["step"],
        "history": state["history"],
        "metrics": evaluations[-1] if evaluations else {},
        "best_metrics": max(evaluations, key=lambda entry: entry[best_metric]) if evaluations else {},
        "seconds": start_seconds + time.perf_counter() - start_time,
        "images_per_second": images_per_second(),
        "interrupted": interrupted,
        "nonfinite_steps": state["nonfinite_steps"],
        "data_fingerprint": state["data_fingerprint"],
        **totals(),
    }
    return (unwrapped if ema is None else ema.module).eval(), report


MAX_NONFINITE_IN_A_ROW = 20


def _step(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[nn.Module, Batch], torch.Tensor],
    group: list[Batch],
    state: dict[str, Any],
) -> torch.Tensor:
    """
    One optimiser step over a group of batches; returns this process' mean loss, which is not finite where the step was
    dropped. FloatingPointError without `--skip_nonfinite`, or after too many such steps in a row.
    """
    total: Any = 0.0
    for index, batch in enumerate(group):
        tensors = {key: value for key, value in batch.items() if key not in ("sample_ids", "skipped")}
        tensors = send_to_device(tensors, accelerator.device, non_blocking=True)
        if settings.channels_last:
            tensors["pixel_values"] = tensors["pixel_values"].to(memory_format=torch.channels_last)
        # Gradients are averaged over the processes once per step; DDP decides that in the forward pass. FSDP averages
        # with every batch: whole gradients would take the memory of a model, and zero_grad does not reach them.
        averaged = settings.fsdp or index == len(group) - 1
        with contextlib.nullcontext() if averaged else accelerator.no_sync(model):
            with accelerator.autocast():
                loss = compute_loss(model, tensors) / len(group)
            finite = math.isfinite(loss.item())
            if not agree(accelerator, finite, "all"):
                state["nonfinite_steps"] += 1
                state["nonfinite_in_a_row"] += 1
                too_many = state["nonfinite_in_a_row"] >= MAX_NONFINITE_IN_A_ROW
                if too_many or not settings.skip_nonfinite:
                    kept = next(reversed(list_checkpoints(settings.output_dir)), None) or "none"
                    names = "another process' batch" if finite else ", ".join(batch["sample_ids"])
                    row = (
                        f", like the {MAX_NONFINITE_IN_A_ROW - 1} before it: the training diverges" if too_many else ""
                    )
                    raise FloatingPointError(
                        f"The loss of step {state['step']} is not finite{row}. Samples: {names}. "
                        f"Last good checkpoint: {kept}. Try a lower --learning_rate, or --max_grad_norm."
                    )
                optimizer.zero_grad()
                return loss.detach()
            accelerator.backward(loss)
        total += loss.detach()
    state["nonfinite_in_a_row"] = 0
    if settings.max_grad_norm:
        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total
