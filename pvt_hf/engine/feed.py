"""Batches for the loop, the same number on every process, and a place to go on from when the source fails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data.batches import BatchStream, StreamError, make_loader
from .settings import TrainingSettings


Batch = dict[str, Any]
# Skipped samples whose names are kept per process; all are counted and shown in the log.
NAMES_KEPT = 100
READY, EXHAUSTED, FAILED = 0, 1, 2


class Feed:
    """
    One epoch in groups of batches for one optimiser step each.

    Args:
        stream_state: where to go on, or None for the epoch's beginning.
        counts: of this process, updated: `trained`, `skipped`, `dropped` (samples), `skipped_samples` (some names).
    """

    def __init__(
        self,
        batches: BatchStream,
        settings: TrainingSettings,
        accelerator: Accelerator,
        stream_state: dict[str, Any] | None,
        counts: dict[str, Any],
    ):
        self.batches, self.accelerator, self.counts = batches, accelerator, counts
        self.group_size = settings.gradient_accumulation_steps
        self.loader = make_loader(batches, settings.num_workers, pin_memory=accelerator.device.type == "cuda")
        if stream_state is not None:
            self.loader.load_state_dict(stream_state)
        self.stream_state = stream_state

    def _tensors(self) -> Iterator[Batch]:
        for batch in self.loader:
            self.counts["skipped"] += len(batch["skipped"])
            self.counts["skipped_samples"] += batch["skipped"][: NAMES_KEPT - len(self.counts["skipped_samples"])]
            for name, reason in batch["skipped"]:
                tqdm.write(f"skipped {name}: {reason}")
            self.counts["dropped"] += batch.get("dropped", 0)
            if "sample_ids" in batch:
                yield batch

    def groups(self, limit: int | None) -> Iterator[list[Batch]]:
        """
        All groups, or at most `limit`: the same number on every process. `stream_state` is the place behind each.

        Raises:
            StreamError: on every process, if one of them cannot read its part. `stream_state` is still the place behind
                the last group.
        """
        tensors = self._tensors()
        for _ in count() if limit is None else range(limit):
            group, problem = [], None
            before = self.counts | {"skipped_samples": list(self.counts["skipped_samples"])}
            try:
                group = list(islice(tensors, self.group_size))
            except Exception as error:  # from the stream, or from a worker that has died
                # From a worker comes its whole traceback, with the error's own words at the end.
                problem = str(error).rpartition(f"{StreamError.__name__}: ")[2] or repr(error)
            status = self._worst(FAILED if problem else READY if len(group) == self.group_size else EXHAUSTED)
            if status == FAILED:
                self.counts.update(before)
                raise StreamError(problem or "another process could not read its part of the stream")
            if status == EXHAUSTED:
                self.counts["dropped"] += sum(len(batch["sample_ids"]) for batch in group)
                return
            self.counts["trained"] += sum(len(batch["sample_ids"]) for batch in group)
            self.stream_state = self.loader.state_dict()
            yield group

    def _worst(self, status: int) -> int:
        if self.accelerator.num_processes == 1:
            return status
        return int(self.accelerator.gather(torch.tensor([status], device=self.accelerator.device)).max())
