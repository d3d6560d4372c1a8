"""The length of a training: how many optimiser steps each epoch takes."""

from __future__ import annotations

import numpy as np

from ..data.batches import BatchStream
from ..data.sharding import worker_sizes


# With uneven shards, or with a held-out share, the steps of an epoch depend on the order of its shards. With more
# shards than this, the first epoch's order is assumed for all epochs, because computing every order would take minutes.
MANY_ORDERED_SHARDS = 100_000


class EpochLengths:
    """
    Optimiser steps of each epoch. Every loader worker fills its own batches, every process its own groups of batches,
    and an epoch ends when the first process has none left; so fewer samples are trained on than the stream has.

    Unusable samples are not known before they are read. They may make an epoch shorter.

    Args:
        batches: the training stream of any process.
        num_samples: samples in one epoch over all processes; None if unknown.
        group_size: batches per optimiser step.
        num_workers: loader processes per process.
        samples_per_epoch: most samples in an epoch; 0: no limit.

    Attributes:
        per_step: samples in one optimiser step, over all processes.
        exact: whether the numbers are counted, and not estimated.
        limit: most steps in an epoch, whatever the stream has; None: the stream decides.

    Raises:
        ValueError: the stream is empty, its length is unknown, or it is too short for a single step.
    """

    def __init__(
        self,
        batches: BatchStream,
        num_samples: int | None,
        group_size: int,
        num_workers: int,
        samples_per_epoch: int = 0,
    ):
        name = batches.stream.name
        if num_samples == 0:
            raise ValueError(f"{name}: the training stream is empty.")
        if num_samples is None and not samples_per_epoch:
            raise ValueError(f"The length of the training stream ({name}) is unknown: give --samples_per_epoch.")
        self.batches, self.num_samples = batches, num_samples
        self.group_size, self.num_workers = group_size, num_workers
        self.per_step = batches.batch_size * group_size * batches.world_size
        own_length = samples_per_epoch or (num_samples if batches.repeats > 1 else None)
        self.limit = own_length // self.per_step if own_length else None
        self._known: dict[int, int] = {}
        sizes = batches.worker_sizes(0, num_workers)
        num_shards = batches.stream.dataset.num_shards
        is_constant = not batches.shuffle_window or (batches.keep is None and num_shards == num_samples)
        self.is_ordered = not is_constant and num_shards <= MANY_ORDERED_SHARDS
        self.exact = batches.repeats > 1 or (sizes is not None and (is_constant or self.is_ordered))
        if self.steps(0) == 0 and (self.exact or (samples_per_epoch or num_samples or 0) < self.per_step):
            shared = (
                f" and {num_workers} loader workers, each of which fills its own batches" if num_workers > 1 else ""
            )
            raise ValueError(
                f"{name}: {samples_per_epoch or self.samples(0) or num_samples} samples do not fill one step of "
                f"{self.per_step} (batch size x accumulation x processes) with {batches.world_size} process(es)"
                f"{shared}: use a smaller --batch_size{' or fewer --num_workers' if num_workers > 1 else ''}."
            )

    def describe(self, epochs: int, max_steps: int) -> str:
        """The log line about the first epoch and the whole training: `max_steps` or, if that is 0, `epochs`."""
        steps, samples = self.steps(0), self.samples(0)
        about = "" if self.exact else "about "
        unused = f" of {samples}" if samples is not None and samples != steps * self.per_step else ""
        total = f"{max_steps} steps" if max_steps else f"{about}{self.total(0, epochs)} steps in {epochs} epoch(s)"
        full = f"{steps * self.per_step}{unused}"
        return f"An epoch has {about}{steps} steps of {self.per_step} samples, {full}. {total}."

    def decay_steps(self, decay_epochs: list[float]) -> list[int]:
        """The steps of these epochs, which may have fractions."""
        return [round(epoch * self.steps(0)) for epoch in decay_epochs]

    def samples(self, epoch: int) -> int | None:
        """Samples that the stream has for an epoch, over all processes, usable or not; None if unknown."""
        parts = [self._worker_sizes(epoch, rank) for rank in range(self.batches.world_size)]
        return None if None in parts else sum(map(sum, parts))  # type: ignore[arg-type]

    def steps(self, epoch: int) -> int:
        """Steps of an epoch if all its samples are usable."""
        key = epoch if self.is_ordered else 0
        if key not in self._known:
            parts = [self._worker_sizes(key, rank) for rank in range(self.batches.world_size)]
            steps = [
                sum(size // self.batches.batch_size for size in sizes) // self.group_size
                for sizes in parts
                if sizes is not None
            ]
            self._known[key] = min([*steps, *([] if self.limit is None else [self.limit])])
        return self._known[key]

    def total(self, first_epoch: int, epochs: int, missing: int = 0) -> int:
        """
        Steps from the beginning of `first_epoch` to the end of the last one of `epochs`.

        Args:
            missing: steps by which each epoch is shorter, because of unusable samples.
        """
        return sum(max(self.steps(epoch) - missing, 1) for epoch in range(first_epoch, epochs))

    def _worker_sizes(self, epoch: int, rank: int) -> list[int] | None:
        batches, num_shards = self.batches, self.batches.stream.dataset.num_shards
        sizes = batches.worker_sizes(epoch, self.num_workers, rank)
        if sizes is not None or self.num_samples is None or batches.repeats > 1:
            return sizes
        # An estimate: equal shards
        shards = np.arange(num_shards) < self.num_samples % num_shards
        return worker_sizes(
            self.num_samples // num_shards + shards.astype(int),
            None,
            rank=rank,
            world_size=batches.world_size,
            num_workers=self.num_workers,
            strategy=batches.strategy,
            shuffle_seed=0,
        )
