"""What the training loop keeps track of: its progress, and requests to stop."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainingState:
    """
    Progress of a training run. Equal on all processes, and saved with every checkpoint.

    Attributes:
        world_size: number of processes.
        data_fingerprint: of the training stream, see [`pvt_hf.data.fingerprint.stream_fingerprint`].
        class_names: of the training stream, if it has any.
        num_samples: of the training stream; None if unknown.
        settings: all arguments of the run.
        step: optimiser steps taken, including those skipped because of a loss that is not finite.
        epoch: completed epochs.
        epoch_start: value of `step` when the current epoch began.
        missing_steps: steps by which the last epoch was shorter than planned, because of unusable samples.
        evaluation_due: an epoch has ended, but its evaluation has not.
        nonfinite_steps: steps skipped because the loss or the gradients were not finite.
        nonfinite_in_a_row: how many of these were the most recent steps.
        seconds: duration so far, summed over all resumed runs.
        history: log entries and evaluations, as dicts with "step" and "epoch". Only log entries have a "loss" (mean
            over the processes).
    """

    world_size: int
    data_fingerprint: str
    class_names: list[str] | None
    num_samples: int | None
    settings: dict[str, Any]
    step: int = 0
    epoch: int = 0
    epoch_start: int = 0
    missing_steps: int = 0
    evaluation_due: bool = False
    nonfinite_steps: int = 0
    nonfinite_in_a_row: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class StopSignal:
    """
    Makes Ctrl-C and SIGTERM stop the training cleanly, while used as a context.

    The signal is only recorded here. Before its next step the loop tells the other processes (`_Training._agree`); all
    save a checkpoint at the same step and return, and the command exits with status 0 after saying how to resume. An
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
