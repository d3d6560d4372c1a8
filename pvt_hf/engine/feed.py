"""Batches of one epoch for the loop: the same number on every process, with the position to resume from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count, islice
from typing import Any

from tqdm.auto import tqdm

from ..data.batches import BatchStream, StreamError, make_loader


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
