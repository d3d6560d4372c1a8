"""
The training loop that every task shares: one linear pass, on one process or many.

A task gives a model, a [`BatchStream`], a loss and an evaluation. Every process takes the same number of steps: before
each step the processes agree whether all of them have a batch, and the epoch ends for all when one has none left.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device, set_seed
from torch import nn
from tqdm.auto import tqdm

from ..data.batches import BatchStream, make_loader
from .arguments import TrainingSettings
from .checkpoint import find_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from .optimizer import cosine_schedule, parameter_groups


Batch = dict[str, Any]


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """
    Raises:
        RuntimeError: the launcher started another number of processes than Accelerate sees (each would train alone).
    """
    accelerator = Accelerator(cpu=settings.cpu, mixed_precision=settings.mixed_precision)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise RuntimeError(
            f"WORLD_SIZE is {launched}, but Accelerate runs {accelerator.num_processes} process(es), each of which "
            "would train alone. On CPUs use `torchrun --nproc_per_node N SCRIPT --cpu`; on GPUs `accelerate launch`."
        )
    set_seed(settings.seed, device_specific=True)
    if accelerator.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # A core for each loader worker: threads that wait for a taken core slow each other down badly.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - settings.num_workers))
    return accelerator


def steps_per_epoch(settings: TrainingSettings, num_samples: int | None, world_size: int) -> int:
    """
    Optimiser steps of one epoch in full batches.

    Raises:
        ValueError: the length is unknown, or there is less than one step in it.
    """
    num_samples = settings.samples_per_epoch or num_samples
    if not num_samples:
        raise ValueError("The source does not say how many samples it has: give --samples_per_epoch.")
    per_step = settings.batch_size * settings.gradient_accumulation_steps * world_size
    if num_samples < per_step:
        raise ValueError(
            f"{num_samples} samples do not fill one step of {per_step} (batch size x accumulation x processes): "
            "use a smaller --batch_size."
        )
    return num_samples // per_step


def agree(accelerator: Accelerator, flag: bool, reduction: str) -> bool:
    """Whether all ("all") or any ("any") of the processes have `flag`."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum").item()
    return total == accelerator.num_processes if reduction == "all" else total > 0


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a wish that the loop reads between two steps; a second Ctrl-C interrupts now."""

    def __init__(self):
        self.received = None

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


class Feed:
    """Groups of batches for one optimiser step each, with the counts of what was skipped and dropped on the way."""

    def __init__(self, batches: BatchStream, settings: TrainingSettings, accelerator: Accelerator, counts: dict):
        self.batches, self.accelerator, self.counts = batches, accelerator, counts
        self.group_size = settings.gradient_accumulation_steps
        self.loader = make_loader(batches, settings.num_workers, pin_memory=accelerator.device.type == "cuda")

    def _tensors(self) -> Iterator[Batch]:
        for batch in self.loader:
            self.counts["skipped"] += len(batch["skipped"])
            for name, reason in batch["skipped"]:
                tqdm.write(f"skipped {name}: {reason}")
            self.counts["dropped"] += batch.get("dropped", 0)
            if "sample_ids" in batch:
                yield batch

    def groups(self, limit: int | None) -> Iterator[list[Batch]]:
        """All groups, or at most `limit`: the same number on every process."""
        tensors = self._tensors()
        for _ in count() if limit is None else range(limit):
            group = list(islice(tensors, self.group_size))
            if not agree(self.accelerator, len(group) == self.group_size, "all"):
                self.counts["dropped"] += sum(len(batch["sample_ids"]) for batch in group)
                return
            yield group


def train(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: nn.Module,
    batches: BatchStream,
    num_samples: int | None,
    compute_loss: Callable[[nn.Module, Batch], torch.Tensor],
    evaluate: Callable[[nn.Module], dict[str, float]],
) -> tuple[nn.Module, dict[str, Any]]:
    """
    Trains `model`, with checkpoints in `settings.output_dir`, resuming if the settings say so.

    Args:
        batches: this process' part of the training stream.
        num_samples: samples of one epoch over all processes, if known.
        compute_loss: (prepared model, batch on the device) to a scalar; anything random in it (mixing) draws from the
            global generators, whose states are in the checkpoints.
        evaluate: called by every process with the unwrapped model in eval mode; returns the same metrics on each.

    Returns:
        The unwrapped model, and a report: `history` (list of dicts by step), `metrics` (the last evaluation), `steps`,
        `skipped`, `dropped`, `nonfinite_steps`, `seconds`, `interrupted` (None or the signal's name).

    Raises:
        FloatingPointError: a loss is not finite; the message has the step, the samples and the last checkpoint.
    """
    per_epoch = steps_per_epoch(settings, num_samples, accelerator.num_processes)
    total_steps = per_epoch * settings.epochs
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.learning_rate)
    scheduler = cosine_schedule(
        optimizer,
        total_steps,
        round(settings.warmup_epochs * per_epoch),
        settings.warmup_learning_rate,
        settings.min_learning_rate,
    )
    model, optimizer = accelerator.prepare(model, optimizer)

    counts = {"skipped": 0, "dropped": 0}
    state: dict[str, Any] = {
        "step": 0,
        "epoch": 0,
        "world_size": accelerator.num_processes,
        "history": [],
        "seconds": 0.0,
        "nonfinite_steps": 0,
    }
    stream_state = None
    if settings.resume_from_checkpoint:
        checkpoint = find_checkpoint(settings.output_dir, settings.resume_from_checkpoint)
        if checkpoint is not None:
            state, stream_state = load_checkpoint(accelerator, checkpoint)
            counts = state.pop("counts")[accelerator.process_index]
            accelerator.print(f"Resumed from {checkpoint} (epoch {state['epoch']}, step {state['step']}).")

    start_time, start_seconds, first_step = time.perf_counter(), state["seconds"], state["step"]
    progress = tqdm(
        total=total_steps, initial=state["step"], disable=not accelerator.is_main_process, unit="step", smoothing=0.05
    )

    def save(stream: dict[str, Any] | None, epoch: int) -> None:
        state["seconds"] = start_seconds + time.perf_counter() - start_time
        all_counts = gather_objects(accelerator, dict(counts))
        save_checkpoint(
            accelerator,
            settings.output_dir,
            {**state, "epoch": epoch, "counts": all_counts},
            stream,
            settings.save_total_limit,
        )

    interrupted = None
    with StopSignal() as stop:
        for epoch in range(state["epoch"], settings.epochs):
            batches.set_epoch(epoch)
            feed = Feed(batches, settings, accelerator, counts)
            if stream_state is not None:
                feed.loader.load_state_dict(stream_state)
                stream_state = None
            # With a length of its own, an epoch ends there; otherwise with the samples.
            limit = (epoch + 1) * per_epoch - state["step"] if settings.samples_per_epoch else None
            model.train()
            for group in feed.groups(limit):
                scheduler.step_update(state["step"])
                loss = _step(accelerator, settings, model, optimizer, compute_loss, group, state)
                state["step"] += 1
                progress.update()
                if state["step"] % settings.log_every_steps == 0 or state["step"] == 1:
                    seconds = time.perf_counter() - start_time
                    images = state["step"] - first_step
                    images *= settings.batch_size * settings.gradient_accumulation_steps * accelerator.num_processes
                    rate = optimizer.param_groups[0]["lr"]
                    state["history"].append(
                        {"step": state["step"], "epoch": epoch, "loss": loss.item(), "learning_rate": rate}
                    )
                    progress.set_postfix(
                        loss=f"{loss.item():.3f}", lr=f"{rate:.1e}", img_s=f"{images / seconds:.0f}", refresh=False
                    )
                # One decision for all: a signal reaches the processes at different moments.
                if agree(accelerator, stop.received is not None, "any"):
                    interrupted = stop.received or "a signal to another process"
                if interrupted or (settings.save_every_steps and state["step"] % settings.save_every_steps == 0):
                    save(feed.loader.state_dict(), epoch)
                if interrupted:
                    break
            if interrupted:
                break
            if state["step"] == 0:
                raise ValueError(
                    f"{batches.stream.name} did not fill a single step of {settings.batch_size} samples per process "
                    f"({counts['skipped']} skipped, {counts['dropped']} left over): use a smaller --batch_size."
                )
            last = epoch + 1 == settings.epochs
            if last or (epoch + 1) % settings.eval_every_epochs == 0:
                unwrapped = accelerator.unwrap_model(model).eval()
                metrics = evaluate(unwrapped)
                state["history"].append({"step": state["step"], "epoch": epoch, **metrics})
                shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                if accelerator.is_main_process:
                    tqdm.write(f"epoch {epoch + 1}/{settings.epochs}: {shown}")
            save(None, epoch + 1)
    progress.close()

    totals = gather_objects(accelerator, counts)
    evaluations = [entry for entry in state["history"] if "loss" not in entry]
    report = {
        "steps": state["step"],
        "history": state["history"],
        "metrics": {k: v for k, v in evaluations[-1].items() if k not in ("step", "epoch")} if evaluations else {},
        "seconds": start_seconds + time.perf_counter() - start_time,
        "interrupted": interrupted,
        "nonfinite_steps": state["nonfinite_steps"],
        **{name: sum(count[name] for count in totals) for name in counts},
    }
    return accelerator.unwrap_model(model).eval(), report


def _step(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[nn.Module, Batch], torch.Tensor],
    group: list[Batch],
    state: dict[str, Any],
) -> torch.Tensor:
    """One optimiser step over a group of batches; returns this process' mean loss."""
    total = 0.0
    for index, batch in enumerate(group):
        tensors = {key: value for key, value in batch.items() if key not in ("sample_ids", "skipped")}
        tensors = send_to_device(tensors, accelerator.device, non_blocking=True)
        # Gradients are averaged over the processes once per step; DDP decides that in the forward pass.
        is_last = index == len(group) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
            with accelerator.autocast():
                loss = compute_loss(model, tensors) / len(group)
            finite = math.isfinite(loss.item())
            if not agree(accelerator, finite, "all"):
                if not settings.skip_nonfinite:
                    kept = (list_checkpoints(settings.output_dir) or ["none"])[-1]
                    names = "another process' batch" if finite else ", ".join(batch["sample_ids"])
                    raise FloatingPointError(
                        f"The loss of step {state['step']} is not finite. Samples: {names}. "
                        f"Last good checkpoint: {kept}."
                    )
                state["nonfinite_steps"] += 1
                optimizer.zero_grad()
                return loss.detach()
            accelerator.backward(loss)
        total += loss.detach()
    if settings.max_grad_norm:
        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total


def gather_objects(accelerator: Accelerator, value: Any) -> list[Any]:
    """`value` of every process, in order of rank, on every process."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]


def ensure_output_dir(settings: TrainingSettings) -> Path:
    """
    Makes the output folder. Raises a FileExistsError if it holds checkpoints of an earlier run that is not resumed.
    """
    folder = Path(settings.output_dir)
    if list_checkpoints(folder) and not settings.resume_from_checkpoint:
        raise FileExistsError(
            f"{folder} holds checkpoints of an earlier run: --resume_from_checkpoint latest, or another --output_dir."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder
