"""Batches for a training loop, ours or another: as many on every process, with the position to resume from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from itertools import count, islice
from typing import Any

from tqdm.auto import tqdm

from ..data.batches import BatchStream, make_loader
from ..data.streams import StreamError
from .processes import gather_integers


Batch = dict[str, Any]
# Skipped samples whose names are kept per process. All are counted and logged.
NAMES_KEPT = 100


class Status(IntEnum):
    """What a process can do next. The processes follow the highest among them."""

    READY = 0  # has a group of batches
    EXHAUSTED = 1  # the epoch is over
    STOPPED = 2  # was asked to stop
    FAILED = 3  # cannot read its part of the stream


@dataclass
class SampleCounts:
    """
    Samples of one process since the beginning of the training.

    Attributes:
        trained: in batches that were trained on.
        skipped: unusable.
        dropped: left over in incomplete batches, or read when another process had none left.
        skipped_samples: the first unusable ones, (name, reason).
    """

    trained: int = 0
    skipped: int = 0
    dropped: int = 0
    skipped_samples: list[tuple[str, str]] = field(default_factory=list)


class Feed:
    """
    One epoch in groups of batches, one group for each optimiser step.

    Args:
        batches: this process' part of the stream, at the right epoch.
        group_size: batches per optimiser step.
        stream_state: loader state to resume from; None for the epoch's beginning.
        counts: of this process, updated.

    Attributes:
        stream_state: the loader's state after the last group; resuming from it continues with the next one.
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
        self.loader = make_loader(batches, num_workers, pin_memory=pin_memory)
        if stream_state is not None:
            self.loader.load_state_dict(stream_state)
        self.stream_state = stream_state

    def groups(self, limit: int | None, agree: Callable[[Status], Status]) -> Iterator[list[Batch]]:
        """
        Yields lists of batches, the same number on every process.

        Args:
            limit: groups at most; None: until the first process has none left.
            agree: called before each group and at the end with this process' status; returns that of all.

        Raises:
            StreamError: on every process, if one of them cannot read its part. `stream_state` is then that after the
                last group.
        """
        batches = self._batches()
        for index in count():
            group, problem, status = [], None, Status.EXHAUSTED
            before = _copy(self.counts)
            if limit is None or index < limit:
                try:
                    group = list(islice(batches, self.group_size))
                    status = Status.READY if len(group) == self.group_size else Status.EXHAUSTED
                except Exception as error:  # from the stream, or from a loader process that has died
                    # A loader process sends its whole traceback, with the error's own words at the end.
                    problem = str(error).rpartition(f"{StreamError.__name__}: ")[2] or repr(error)
                    status = Status.FAILED
            status = agree(status)
            samples = sum(len(batch["sample_ids"]) for batch in group)
            if status in (Status.FAILED, Status.STOPPED):
                self.counts.__dict__.update(before.__dict__)  # the group is read again after a resume
            if status == Status.FAILED:
                raise StreamError(problem or "another process could not read its part of the stream")
            if status == Status.STOPPED:
                self.stopped = True
                return
            if status == Status.EXHAUSTED:
                self.counts.dropped += samples
                return
            self.counts.trained += samples
            self.stream_state = self.loader.state_dict()
            yield group

    def _batches(self) -> Iterator[Batch]:
        """Batches that have samples. Counts and names the samples that were skipped on the way."""
        for batch in self.loader:
            self.counts.skipped += len(batch["skipped"])
            self.counts.skipped_samples += batch["skipped"][: NAMES_KEPT - len(self.counts.skipped_samples)]
            for name, reason in batch["skipped"]:
                tqdm.write(f"skipped {name}: {reason}")
            self.counts.dropped += batch.get("dropped", 0)
            if "sample_ids" in batch:
                yield batch


def _copy(counts: SampleCounts) -> SampleCounts:
    return SampleCounts(counts.trained, counts.skipped, counts.dropped, list(counts.skipped_samples))


class TrainingStream:
    """
    This process' training batches, epoch by epoch, for a loop of another library. An iteration is one epoch.

    Args:
        batches: this process' part of the stream.
        group_size: batches per optimiser step.

    Attributes:
        counts: of this process' samples.
    """

    def __init__(self, batches: BatchStream, group_size: int, num_workers: int, pin_memory: bool):
        self.batches, self.group_size, self.num_workers, self.pin_memory = batches, group_size, num_workers, pin_memory
        self.epoch = 0
        self.loader_state: dict[str, Any] | None = None  # None at the beginning of an epoch
        self.counts = SampleCounts()

    def __iter__(self) -> Iterator[Batch]:
        """
        Raises:
            StreamError: on every process, if one of them cannot read its part.
        """
        if self.loader_state is not None:  # resumed, perhaps after the last step of an epoch
            trained = self.counts.trained
            yield from self._epoch()
            if self.counts.trained > trained:
                return
        yield from self._epoch()

    def _epoch(self) -> Iterator[Batch]:
        self.batches.set_epoch(self.epoch)
        feed = Feed(self.batches, self.group_size, self.num_workers, self.pin_memory, self.loader_state, self.counts)
        for group in feed.groups(None, highest_status):
            self.loader_state = feed.stream_state
            yield from group
        self.epoch, self.loader_state = self.epoch + 1, None

    def state_dict(self) -> dict[str, Any]:
        """The position after the optimiser step whose batches were the last to be yielded."""
        return {"epoch": self.epoch, "loader": self.loader_state, "counts": asdict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration continues with the batch after `state`."""
        self.epoch, self.loader_state = state["epoch"], state["loader"]
        self.counts = SampleCounts(**state["counts"])


def highest_status(status: Status) -> Status:
    """That of all processes: an epoch that is over for one is over for all. Every process has to ask."""
    return Status(max(value for (value,) in gather_integers(status)))
