"""
The training loop of every task, in one process or several.

All processes take the same number of steps. Before each step they exchange a few integers (`_Training._agree`): whether
each one has a batch, was asked to stop (see [`StopSignal`]), and found its recent losses finite. The exchange is
between CPUs, so no process waits for its GPU.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.batches import BatchStream
from ..data.fingerprint import stream_fingerprint
from ..data.label_counts import LabelCounts
from ..data.streams import StreamError
from ..metrics.reports import format_metrics
from .best import BestModel, best_evaluation, evaluations, evaluations_since_best
from .checkpoints import (
    find_checkpoint,
    later_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from .epochs import EpochLengths
from .feed import Batch, Feed, SampleCounts, Status
from .finite import FiniteSteps, gradient_norm, poison, whole
from .guard import LabelGuard
from .optimizer import change_length
from .preparation import prepare
from .processes import gather_integers, share_buffers
from .settings import TrainingSettings
from .state import StopSignal, TrainingState


ComputeLoss = Callable[[nn.Module, Batch], torch.Tensor]
# Without --log_every_steps: the loss of every 20th step, or more often in a short run, for about 40 entries.
LOG_EVERY_STEPS, LOG_ENTRIES = 20, 40
# With --skip_nonfinite, this many steps in a row with a loss that is not finite stop the training.
MAX_NONFINITE_IN_A_ROW = 20


def train(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: PreTrainedModel,
    batches: BatchStream,
    num_samples: int | None,
    compute_loss: ComputeLoss,
    evaluate: Callable[[nn.Module], dict[str, Any]],
    best_metric: str,
    guard: LabelGuard | None = None,
    processor: Any = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """
    Trains `model` and saves checkpoints in `settings.output_dir`. Starts from the beginning, or from the checkpoint
    that `settings.resume_from_checkpoint` names.

    Args:
        batches: this process's part of the training stream.
        num_samples: samples in one epoch, over all processes; None if unknown.
        compute_loss: (prepared model, batch on its device) to a scalar. Random numbers in it (Mixup, for example) must
            come from the global generators, because checkpoints save their states.
        evaluate: called on every process with the unwrapped model in eval mode (its moving average, with `ema_decay`);
            must return the same metrics on each. Metrics that are numbers are printed and sent to the trackers.
        best_metric: the metric that selects the best evaluation; higher is better.
        guard: takes the labels of the first epoch.
        processor: the image processor that `--keep_best` saves with the best model.

    Returns:
        The unwrapped model (its moving average, with `ema_decay`) in eval mode, and a report:

        - `history`: see [`TrainingState`];
        - `metrics`, `best_metrics`: of the last and of the best evaluation; `best_step`: the step of the best one;
        - `stopped_early`: whether `--patience` ended the training;
        - `steps`: optimiser steps; `nonfinite_steps`: those that were skipped;
        - `trained`, `skipped`, `dropped`, `skipped_samples`: see [`SampleCounts`], over all processes;
        - `seconds`: duration, over all resumed runs;
        - `images_per_second`: over all processes, since the start or resume, without evaluation;
        - `interrupted`: name of the signal that stopped the training, or None;
        - `data_fingerprint`: of the training stream.

    Raises:
        FloatingPointError: the loss or the gradients of a step are not finite. The step changed no weight. The message
            names the step, the samples and the last checkpoint.
        StreamError: the data cannot be read. A checkpoint was saved, unless no step was taken or the last one is not
            finite.
        ValueError: the first epoch had nothing to learn from; or the checkpoint was written with other data, other
            settings or another number of processes.
        OSError: a checkpoint cannot be read or written.
    """
    arguments = (accelerator, settings, model, batches, num_samples, compute_loss, evaluate, best_metric, guard)
    return _Training(*arguments, processor).run()


class _Training:
    """One call of [`train`]."""

    def __init__(
        self,
        accelerator: Accelerator,
        settings: TrainingSettings,
        model: PreTrainedModel,
        batches: BatchStream,
        num_samples: int | None,
        compute_loss: ComputeLoss,
        evaluate: Callable[[nn.Module], dict[str, Any]],
        best_metric: str,
        guard: LabelGuard | None,
        processor: Any,
    ):
        self.accelerator, self.settings, self.batches, self.num_samples = accelerator, settings, batches, num_samples
        self.compute_loss, self.evaluate, self.best_metric, self.guard = compute_loss, evaluate, best_metric, guard
        self.lengths = EpochLengths(
            batches, num_samples, settings.gradient_accumulation_steps, settings.num_workers, settings.samples_per_epoch
        )
        self.total_steps = settings.max_steps or self.lengths.total(0, settings.epochs)
        often = min(max(self.total_steps // LOG_ENTRIES, 1), LOG_EVERY_STEPS)
        self.log_every_steps = settings.log_every_steps or often
        prepared = prepare(accelerator, settings, model, self.lengths, self.total_steps)
        self.model, self.unwrapped, self.ema = prepared.model, prepared.unwrapped, prepared.ema
        self.optimizer, self.scheduler, self.drop_path = prepared.optimizer, prepared.scheduler, prepared.drop_path
        self.counts = SampleCounts()
        stream = batches.stream
        self.state = TrainingState(
            accelerator.num_processes,
            stream_fingerprint(stream),
            None if stream.class_names is None else list(stream.class_names),
            stream.num_samples,
            asdict(settings),
        )
        self.stream_state: dict[str, Any] | None = None
        if settings.resume_from_checkpoint:
            self._resume()
        if accelerator.is_main_process:
            remove_leftovers(settings.output_dir)
        self.best: BestModel | None = None
        if settings.keep_best:
            self.best = BestModel(accelerator, settings.output_dir, best_metric, processor, self.state.history)
        accelerator.print(self.lengths.describe(settings.epochs, settings.max_steps))
        self.finite_steps = FiniteSteps(self.state.step)
        self.stop = StopSignal()
        self.interrupted: str | None = None
        self.start_time, self.start_seconds = time.perf_counter(), self.state.seconds
        self.trained_before, self.busy_seconds = self.counts.trained, 0.0
        self.progress = tqdm(
            total=self.total_steps,
            initial=self.state.step,
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
            unit="step",
            smoothing=0.05,
        )
        self._change_length()

    def _change_length(self) -> None:
        """
        Adapts the rest of the training to the steps that the epochs have had so far: unusable samples leave fewer than
        planned. The result depends on the state alone, so a resumed run has the same schedule.
        """
        settings, state, lengths = self.settings, self.state, self.lengths
        if settings.max_steps:
            return
        rest = lengths.total(state.epoch, settings.epochs, state.missing_steps)
        self.total_steps = self.progress.total = state.epoch_start + rest
        change_length(self.scheduler, self.total_steps, lengths.decay_steps(settings.decay_epochs))
        self.progress.refresh()

    def _resume(self) -> None:
        """Restores the checkpoint that the settings name; with "latest" and no checkpoint, does nothing."""
        accelerator, settings = self.accelerator, self.settings
        checkpoint = find_checkpoint(settings.output_dir, settings.resume_from_checkpoint)
        if checkpoint is None:
            accelerator.print(f"No checkpoint in {settings.output_dir} yet: starting from the beginning.")
            return
        saved, self.stream_state = load_checkpoint(accelerator, checkpoint, asdict(self.state))
        self.counts = SampleCounts.from_dict(saved.pop("counts")[accelerator.process_index])
        data = {name: getattr(self.state, name) for name in ("data_fingerprint", "class_names", "num_samples")}
        changed = saved["data_fingerprint"] != data["data_fingerprint"]
        self.state = TrainingState(**{**saved, **data, "settings": asdict(settings)})
        accelerator.print(f"Resumed from {checkpoint} (epoch {self.state.epoch}, step {self.state.step}).")
        if changed and self.stream_state is not None:
            self.state.epoch_start, self.stream_state = self.state.step, None
            accelerator.print("The data have changed: the epoch begins anew, so this resume is not exact.")
        if later := later_checkpoints(settings.output_dir, checkpoint):
            names = ", ".join(path.name for path in later)
            accelerator.print(f"{names}: later than this one, so deleted when the next checkpoint is saved.")

    def run(self) -> tuple[PreTrainedModel, dict[str, Any]]:
        """See [`train`]."""
        with self.stop, self.progress:
            if self.state.evaluation_due:
                self._evaluate_and_save(self.stream_state)
            elif self._is_finished():
                self.accelerator.print("The training is already complete: only the final model is left to save.")
            while not self._is_finished() and self._train_epoch():
                self._evaluate_and_save(None)
        return self._evaluated_model().eval(), self._report()

    def _is_finished(self) -> bool:
        if self._stops_early():
            return True
        if self.settings.max_steps:  # the second condition: the last epoch has been closed
            return self.state.step >= self.total_steps and self.state.epoch_start == self.state.step
        return self.state.epoch >= self.settings.epochs

    def _stops_early(self) -> bool:
        patience = self.settings.patience
        return bool(patience) and evaluations_since_best(self.state.history, self.best_metric) >= patience

    def _train_epoch(self) -> bool:
        """
        Trains for one epoch, or the rest of it after a resume. Returns whether the epoch is complete. It is not, and a
        checkpoint is saved, if any process was asked to stop (`interrupted` is then set), or if `--patience` has ended.
        """
        state, settings = self.state, self.settings
        self.batches.set_epoch(state.epoch)
        if self.drop_path is not None:
            self.drop_path.set_epoch(state.epoch)
        feed = Feed(
            self.batches,
            settings.gradient_accumulation_steps,
            settings.num_workers,
            self.accelerator.device.type == "cuda",
            self.stream_state,
            self.counts,
        )
        self.stream_state = None
        self.model.train()
        start = time.perf_counter()
        try:
            for group in feed.groups(self._steps_left_in_epoch(), self._agree):
                loss = self._step(group)
                self.busy_seconds += time.perf_counter() - start
                self._log(loss)
                if settings.eval_every_steps and state.step % settings.eval_every_steps == 0:
                    state.evaluation_due = True
                    self._save(feed.stream_state)  # the evaluation may take long, and the run may be killed meanwhile
                    self._evaluate_and_save(feed.stream_state)
                    if self._stops_early():
                        return False
                    self.model.train()
                elif settings.save_every_steps and state.step % settings.save_every_steps == 0:
                    self._save(feed.stream_state)
                start = time.perf_counter()
        except StreamError as error:
            if state.step:  # nothing is worth keeping before that, and the folder stays free for a new start
                self._save(feed.stream_state)
            kept = latest_checkpoint(settings.output_dir)
            way = "start again"
            if kept:
                way = (
                    f"continue from {kept} with --resume_from_checkpoint latest; after removing samples, also with "
                    "--resume_with_changed_data"
                )
            raise StreamError(f"{error}\nStopped at step {state.step}: repair the data and {way}.") from error
        if feed.stopped:
            self.interrupted = self.stop.received or "a signal to another process"
            if state.step:
                self._save(feed.stream_state)
            return False
        self._close_epoch()
        return True

    def _close_epoch(self) -> None:
        """Counts the epoch, adapts the rest of the training to its length, and decides whether to evaluate."""
        state, settings = self.state, self.settings
        if state.step == state.epoch_start:
            where = " and another --output_dir" if state.step else ""  # there are checkpoints of the other size
            raise ValueError(
                f"{self.batches.stream.name} did not fill a single step of {settings.batch_size} samples per process "
                f"({self.counts.skipped} skipped, {self.counts.dropped} left over): use a smaller --batch_size or "
                f"fewer --num_workers{where}."
            )
        if self.guard is not None and state.epoch == 0:
            labels = LabelCounts.total(gather_object([self.counts.labels]))
            self.guard.finish(labels, whole=self._steps_left_in_epoch() != 0)
        state.missing_steps = self.lengths.steps(state.epoch) - (state.step - state.epoch_start)
        state.epoch, state.epoch_start = state.epoch + 1, state.step
        self._change_length()
        wanted = not settings.eval_every_steps and state.epoch % settings.eval_every_epochs == 0
        is_evaluated = any(entry["step"] == state.step for entry in evaluations(state.history)[-1:])
        state.evaluation_due = (wanted or self._is_finished()) and not is_evaluated
        if state.evaluation_due:
            self._save(None)

    def _steps_left_in_epoch(self) -> int | None:
        """Most steps until the epoch ends, whether or not samples are left; None if only the samples end it."""
        limits = []
        if self.lengths.limit is not None:
            limits.append(self.state.epoch_start + self.lengths.limit - self.state.step)
        if self.settings.max_steps:
            limits.append(self.total_steps - self.state.step)
        return min(limits, default=None)

    def _agree(self, status: Status) -> Status:
        """
        The highest status among all processes. Also exchanges which recent steps were finite: this is the only
        collective of a step besides the averaging of gradients.
        """
        if status < Status.STOPPED and self.stop.received:
            status = Status.STOPPED
        self.finite_steps.resolve()
        parts = gather_integers(status, *self.finite_steps.encode())
        self._check_finite([part[1:] for part in parts])
        return Status(max(part[0] for part in parts))

    def _step(self, group: list[Batch]) -> torch.Tensor:
        """
        Takes one optimiser step on a group of batches. Returns their mean loss on this process, a scalar on the device.
        """
        self.scheduler.step_update(self.state.step)
        losses = []
        for index, batch in enumerate(group):
            # DDP averages the gradients over the processes once per step, with the last batch. FSDP does so with every
            # batch, because unsharded gradients would take as much memory as the whole model.
            is_averaged = self.settings.fsdp or index == len(group) - 1
            with contextlib.nullcontext() if is_averaged else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    loss = self.compute_loss(self.model, self._to_device(batch)) / len(group)
                self.accelerator.backward(poison(loss))
            losses.append(loss.detach())
        norm: torch.Tensor | None = None
        if self.settings.max_grad_norm:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        if self.accelerator.scaler is None:  # the gradient scaler of fp16 skips steps itself
            norm = gradient_norm(self.model) if norm is None else whole(norm)
            # Fused AdamW reads this: 1 leaves parameters and moments unchanged.
            self.optimizer.optimizer.found_inf = norm.isfinite().logical_not().float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.finite_steps.add(
            losses, norm if self.accelerator.scaler is None else None, [batch["sample_ids"] for batch in group]
        )
        self.state.step += 1
        if self.ema is not None:
            self.ema.update(self.unwrapped, step=self.state.step)
        self.progress.update()
        return torch.stack(losses).sum()

    def _to_device(self, batch: Batch) -> Batch:
        tensors = {key: value for key, value in batch.items() if key not in ("sample_ids", "skipped")}
        tensors = send_to_device(tensors, self.accelerator.device, non_blocking=True)
        if self.settings.channels_last:
            tensors["pixel_values"] = tensors["pixel_values"].to(memory_format=torch.channels_last)
        return tensors

    def _settle_finite_steps(self) -> None:
        """Waits until every process knows of all steps so far whether they were finite."""
        self.finite_steps.resolve(wait=True)
        self._check_finite(gather_integers(*self.finite_steps.encode()))

    def _check_finite(self, parts: list[list[int]]) -> None:
        """
        Counts the skipped steps. Raises a FloatingPointError for one without `--skip_nonfinite`, or for too many in a
        row.
        """
        state = self.state
        for step, finite in self.finite_steps.merge(parts):
            sample_ids = self.finite_steps.sample_ids.pop(step, [])
            state.nonfinite_in_a_row = 0 if finite else state.nonfinite_in_a_row + 1
            state.nonfinite_steps += not finite
            diverges = state.nonfinite_in_a_row >= MAX_NONFINITE_IN_A_ROW
            if finite or (self.settings.skip_nonfinite and not diverges):
                continue
            names = ", ".join(sample_ids) or (
                "on another process, unless only the gradients overflow"
                if self.accelerator.num_processes > 1
                else "none, only the gradients overflow"
            )
            row = f", like the {MAX_NONFINITE_IN_A_ROW - 1} before it: the training diverges" if diverges else ""
            kept = latest_checkpoint(self.settings.output_dir)
            raise FloatingPointError(
                f"The loss of step {step} is not finite{row}. Samples: {names}. Last good checkpoint: "
                f"{kept or 'none'}. Try a lower --learning_rate, or --max_grad_norm, "
                f"{'with --resume_from_checkpoint latest' if kept else 'from the beginning'}."
            )

    def _log(self, loss: torch.Tensor) -> None:
        """Logs the loss and the learning rate, at the first step and every `log_every_steps`."""
        state = self.state
        if state.step % self.log_every_steps and state.step != 1:
            return
        values = {
            "loss": self.accelerator.reduce(loss, "mean").item(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        state.history.append({"step": state.step, "epoch": state.epoch, **values})
        rate = self._images_per_second()
        self.accelerator.log({**values, "images_per_second": rate}, step=state.step)
        shown = {"loss": f"{values['loss']:.3f}", "lr": f"{values['learning_rate']:.1e}", "img_s": f"{rate:.0f}"}
        self.progress.set_postfix(shown, refresh=False)
        if self.accelerator.is_main_process and self.progress.disable:
            text = ", ".join(f"{name} {value}" for name, value in shown.items())
            print(f"step {state.step}/{self.total_steps}: {text}", flush=True)

    def _evaluate_and_save(self, stream_state: dict[str, Any] | None) -> None:
        """
        Evaluates if that is due, prints the progress and saves a checkpoint.

        Args:
            stream_state: as for `_save`; None at the end of an epoch.
        """
        state, settings = self.state, self.settings
        within = stream_state is not None  # an epoch that is not complete
        self._settle_finite_steps()
        shown = ""
        if state.evaluation_due:
            evaluated = self._evaluated_model().eval()
            share_buffers(self.accelerator, evaluated)
            metrics = self.evaluate(evaluated)
            state.history.append({"step": state.step, "epoch": state.epoch - (not within), **metrics})
            numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            self.accelerator.log(numbers, step=state.step)
            shown = "".join(f", {text}" for text in format_metrics(metrics))
            state.evaluation_due = False
            if self.best is not None and self.best.update(evaluated, state.history[-1]):
                shown += f", best {self.best_metric} so far: kept in {self.best.folder}"
        if state.nonfinite_steps:
            shown += f", {state.nonfinite_steps} steps skipped because of a loss that is not finite"
        totals = self._total_counts()
        if self.accelerator.is_main_process:
            epochs, steps = ("", f"/{self.total_steps}") if settings.max_steps else (f"/{settings.epochs}", "")
            tqdm.write(
                f"{'in ' if within else ''}epoch {state.epoch + within}{epochs}: step {state.step}{steps}, "
                f"{totals['trained']} samples trained, {totals['skipped']} skipped, {totals['dropped']} left over so "
                f"far{shown}"
            )
            if self._stops_early():
                best = best_evaluation(state.history, self.best_metric) or {}
                tqdm.write(
                    f"Stopped early: {settings.patience} evaluation(s) in a row without a higher {self.best_metric} "
                    f"than at step {best['step']}."
                )
        self._save(stream_state)

    def _save(self, stream_state: dict[str, Any] | None) -> None:
        """
        Saves a checkpoint, with this process's position in the stream (None at the end of an epoch). Does nothing if
        the last step was not finite, except after a signal.
        """
        self._settle_finite_steps()
        if self.state.nonfinite_in_a_row and self.interrupted is None:
            return  # a training that diverges must not replace its good checkpoints
        self.state.seconds = self._seconds()
        save_checkpoint(
            self.accelerator,
            Path(self.settings.output_dir),
            {**asdict(self.state), "counts": gather_object([asdict(self.counts)])},
            stream_state,
            self.settings.save_total_limit,
        )

    def _evaluated_model(self) -> Any:
        return self.unwrapped if self.ema is None else self.ema.module

    def _seconds(self) -> float:
        return self.start_seconds + time.perf_counter() - self.start_time

    def _images_per_second(self) -> float:
        """Over all processes, assuming that each trains as many images as this one."""
        trained = (self.counts.trained - self.trained_before) * self.accelerator.num_processes
        return trained / max(self.busy_seconds, 1e-9)

    def _total_counts(self) -> dict[str, Any]:
        """[`SampleCounts`] over all processes, as a dict."""
        parts = gather_object([asdict(self.counts)])
        totals: dict[str, Any] = {
            name: sum((part[name] for part in parts), [] if name == "skipped_samples" else 0)
            for name in ("trained", "skipped", "dropped", "skipped_samples")
        }
        if self.batches.keep is None and self.lengths.limit is None and not self.settings.max_steps:
            # From the length of the stream: when one process runs out, others may leave samples unread.
            assert self.num_samples is not None  # otherwise there is a --samples_per_epoch
            left = self.num_samples * self.state.epoch - totals["trained"] - totals["skipped"]
            if left >= 0:  # else earlier epochs were longer (--resume_with_changed_data)
                totals["dropped"] = left
        return totals

    def _report(self) -> dict[str, Any]:
        state = self.state
        best = best_evaluation(state.history, self.best_metric)
        last = evaluations(state.history)[-1:]

        def metrics(evaluation: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in evaluation.items() if name != "step"}

        return {
            "steps": state.step,
            "history": state.history,
            "metrics": metrics(last[0]) if last else {},
            "best_metrics": metrics(best) if best else {},
            "best_step": best["step"] if best else None,
            "stopped_early": self._stops_early(),
            "seconds": self._seconds(),
            "images_per_second": self._images_per_second(),
            "interrupted": self.interrupted,
            "nonfinite_steps": state.nonfinite_steps,
            "data_fingerprint": state.data_fingerprint,
            **self._total_counts(),
        }
