"""
Training batches in groups, one group per optimiser step, the same number on every process.

[`Feed`] serves our own loop and [`TrainingStream`] that of another library. Both resume after the last group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from itertools import count, islice
from typing import Any

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data.batches import BatchStream, make_loader
from ..data.label_counts import LabelCounts
from ..data.streams import StreamError
from .guard import LabelGuard
from .processes import gather_integers


Batch = dict[str, Any]
# Skipped samples that are kept by name, per process. All of them are counted and printed.
NAMES_KEPT = 100


class Status(IntEnum):
    """What a process can do next. All processes act on the highest status among them."""

    READY = 0  # has a group of batches
    EXHAUSTED = 1  # has no full group left in this epoch
    STOPPED = 2  # was asked to stop
    FAILED = 3  # cannot read its part of the stream


@dataclass
class SampleCounts:
    """
    What happened to the samples of one process since the beginning of the training.

    Attributes:
        trained: samples in batches that were trained on.
        skipped: unusable samples.
        dropped: samples in incomplete batches or groups, or in a group that another process could not match.
        skipped_samples: (name, reason) of the first unusable samples.
        labels: in the samples that were trained on in the first epoch.
    """

    trained: int = 0
    skipped: int = 0
    dropped: int = 0
    skipped_samples: list[tuple[str, str]] = field(default_factory=list)
    labels: LabelCounts = field(default_factory=LabelCounts)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SampleCounts:
        """The reverse of `dataclasses.asdict`, also after JSON."""
        return cls(**{**values, "labels": LabelCounts.from_dict(values["labels"])})


class Feed:
    """
    One epoch of batches in groups.

    Args:
        batches: this process's part of the stream, with its epoch set.
        group_size: batches per optimiser step.
        num_workers: loader processes.
        pin_memory: whether batches are loaded into page-locked memory, for copies to a GPU in the background.
        stream_state: loader state to resume from; None starts at the beginning of the epoch.
        counts: this process's counts, updated in place.

    Attributes:
        stream_state: loader state after the last group. Resuming from it continues with the next group.
        stopped: whether the epoch ended early because a process was asked to stop.
    """

    def __init__(
        self,
        batches: BatchStream,
        group_size: int,
        num_workers: int,
        pin_memory: bool,
        stream_state: dict[str, Any] | None,
        counts: SampleCounts,
    ):
        self.group_size, self.counts, self.stopped = group_size, counts, False
        self.is_first_epoch = batches.epoch == 0
        self.loader = make_loader(batches, num_workers, pin_memory=pin_memory)
        if stream_state is not None:
            self.loader.load_state_dict(stream_state)
        self.stream_state = stream_state

    def groups(self, limit: int | None, agree: Callable[[Status], Status]) -> Iterator[list[Batch]]:
        """
        Yields groups of batches, the same number on every process.

        Args:
            limit: largest number of groups; None: until the first process runs out.
            agree: maps this process's status to the highest of all processes. Called before each group and once at the
                end.

        Raises:
            StreamError: on every process, if one of them cannot read its part of the stream.
        """
        batches = self._batches()
        for index in count():
            group, problem, status = [], None, Status.EXHAUSTED
            before = replace(self.counts, skipped_samples=list(self.counts.skipped_samples))
            if limit is None or index < limit:
                try:
                    group = list(islice(batches, self.group_size))
                    status = Status.READY if len(group) == self.group_size else Status.EXHAUSTED
                except Exception as error:  # from the stream, or because a loader process has died
                    problem, status = stream_error_message(error), Status.FAILED
            status = agree(status)
            samples = sum(len(batch["sample_ids"]) for batch in group)
            if status in (Status.FAILED, Status.STOPPED):
                self.counts.__dict__.update(before.__dict__)  # a resumed run reads this group again
            if status == Status.FAILED:
                raise StreamError(problem or "another process could not read its part of the stream")
            if status == Status.STOPPED:
                self.stopped = True
                return
            if status == Status.EXHAUSTED:
                self.counts.dropped += samples
                return
            self.counts.trained += samples
            labels = [batch.pop("label_counts", LabelCounts()) for batch in group]
            if self.is_first_epoch:
                self.counts.labels.add(LabelCounts.total(labels))
            self.stream_state = self.loader.state_dict()
            yield group

    def _batches(self) -> Iterator[Batch]:
        """Yields the batches that have samples, and counts and prints the samples skipped before each of them."""
        for batch in self.loader:
            self.counts.skipped += len(batch["skipped"])
            self.counts.skipped_samples += batch["skipped"][: NAMES_KEPT - len(self.counts.skipped_samples)]
            for name, reason in batch["skipped"]:
                tqdm.write(f"skipped {name}: {reason}")
            self.counts.dropped += batch.get("dropped", 0)
            if "sample_ids" in batch:
                yield batch


def stream_error_message(error: Exception) -> str:
    """The message of an error from a loader, without the traceback that a loader process puts before it."""
    return str(error).rpartition(f"{StreamError.__name__}: ")[2].strip() or repr(error)


class TrainingStream:
    """
    This process's training batches for the loop of another library, such as Transformers' `Trainer`. Each iteration is
    one epoch.

    Args:
        batches: this process's part of the stream.
        group_size: batches per optimiser step.
        num_workers, pin_memory: as for [`Feed`].
        guard: takes the labels of the first epoch.

    Attributes:
        counts: what happened to this process's samples.
    """

    def __init__(
        self,
        batches: BatchStream,
        group_size: int,
        num_workers: int,
        pin_memory: bool,
        guard: LabelGuard | None = None,
    ):
        self.batches, self.group_size, self.num_workers, self.pin_memory = batches, group_size, num_workers, pin_memory
        self.guard, self.epoch = guard, 0
        self.loader_state: dict[str, Any] | None = None  # None at the beginning of an epoch
        self.counts = SampleCounts()

    def __iter__(self) -> Iterator[Batch]:
        """
        Yields the batches of one epoch, or what is left of it after a resume.

        Raises:
            StreamError: on every process, if one of them cannot read its part of the stream.
            ValueError: the first epoch had nothing to learn from.
        """
        if self.loader_state is not None:
            trained = self.counts.trained
            yield from self._epoch()
            if self.counts.trained > trained:
                return
            # Resumed after the last step of an epoch: continue with the next one.
        yield from self._epoch()

    def _epoch(self) -> Iterator[Batch]:
        self.batches.set_epoch(self.epoch)
        feed = Feed(self.batches, self.group_size, self.num_workers, self.pin_memory, self.loader_state, self.counts)
        for group in feed.groups(None, highest_status):
            self.loader_state = feed.stream_state
            yield from group
        if self.guard is not None and self.epoch == 0:
            self.guard.finish(LabelCounts.total(gather_object([self.counts.labels])))
        self.epoch, self.loader_state = self.epoch + 1, None

    def state_dict(self) -> dict[str, Any]:
        """The position after the optimiser step whose batches were yielded last."""
        return {"epoch": self.epoch, "loader": self.loader_state, "counts": asdict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration continue after `state`."""
        self.epoch, self.loader_state = state["epoch"], state["loader"]
        self.counts = SampleCounts.from_dict(state["counts"])


def highest_status(status: Status) -> Status:
    """The highest status among all processes, each of which has to call this."""
    return Status(max(value for (value,) in gather_integers(status)))
