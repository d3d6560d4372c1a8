"""What the loop keeps of a training: where it stands, how long it is, and whether it was asked to stop."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from .settings import TrainingSettings


@dataclass
class TrainingState:
    """
    Where a training stands: the same on every process, and saved with every checkpoint.

    Attributes:
        step, epoch: optimiser steps taken and epochs closed.
        epoch_start: step at which the current epoch began.
        evaluation_due: whether the last epoch has ended and its evaluation has not.
        nonfinite_steps: steps skipped because of a loss or gradients that are not finite; `nonfinite_in_a_row`: the
            last ones of them without another step between.
        seconds: duration so far, over all resumes.
        history: dicts by step: losses (means over the processes) and evaluations.
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
    Optimiser steps of one epoch in full batches.

    Raises:
        ValueError: the length is unknown, or shorter than one step.
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
    """Turns SIGTERM and Ctrl-C into a request that the loop reads between two steps. A second Ctrl-C interrupts."""

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
