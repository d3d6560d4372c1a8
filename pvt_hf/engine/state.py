"""What the training loop keeps track of: its progress, the length of an epoch, and requests to stop."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from .settings import TrainingSettings


@dataclass
class TrainingState:
    """
    Progress of a training run. Equal on all processes, and saved with every checkpoint.

    Attributes:
        world_size: number of processes.
        data_fingerprint: of the training stream, see [`pvt_hf.data.fingerprint.stream_fingerprint`].
        settings: all arguments of the run.
        step: optimiser steps taken, including those skipped because of a loss that is not finite.
        epoch: completed epochs.
        epoch_start: value of `step` when the current epoch began.
        evaluation_due: an epoch has ended, but its evaluation has not.
        nonfinite_steps: steps skipped because the loss or the gradients were not finite.
        nonfinite_in_a_row: how many of these were the most recent steps.
        seconds: duration so far, summed over all resumed runs.
        history: log entries and evaluations, as dicts with "step" and "epoch". Only log entries have a "loss" (mean
            over the processes).
    """

    world_size: int
    data_fingerprint: str
    settings: dict[str, Any]
    step: int = 0
    epoch: int = 0
    epoch_start: int = 0
    evaluation_due: bool = False
    nonfinite_steps: int = 0
    nonfinite_in_a_row: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def steps_per_epoch(settings: TrainingSettings, num_samples: int | None, world_size: int) -> int:
    """
    Optimiser steps in one epoch, all with full batches.

    Args:
        num_samples: samples in one epoch, over all processes; None if unknown. `--samples_per_epoch` overrides it.

    Raises:
        ValueError: the stream is empty, its length is unknown, or it is too short for a single step.
    """
    if num_samples == 0:
        raise ValueError("The training stream is empty.")
    num_samples = settings.samples_per_epoch or num_samples
    if num_samples is None:
        raise ValueError("The length of the training stream is unknown: give --samples_per_epoch.")
    per_step = settings.batch_size * settings.gradient_accumulation_steps * world_size
    if num_samples < per_step:
        raise ValueError(
            f"{num_samples} samples do not fill one step of {per_step} (batch size x accumulation x processes): "
            "use a smaller --batch_size."
        )
    return num_samples // per_step


class StopSignal:
    """
    Makes Ctrl-C and SIGTERM stop the training cleanly, while used as a context.

    The signal is only recorded here. Before its next step the loop tells the other processes (`_Training._agree`); all
    save a checkpoint at the same step and return, and the script exits with status 0 after saying how to resume. An
    evaluation that is running is finished first. A second Ctrl-C raises KeyboardInterrupt at once.

    Attributes:
        received: name of the signal, such as "SIGINT"; None if there was none.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> StopSignal:
        self.previous = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _record(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
