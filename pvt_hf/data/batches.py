"""
Batches from a stream: divided over processes and workers, shuffled, tolerant of faults, and resumable to the sample.

A loader worker makes whole batches, so it knows which samples were skipped, and its state is that after the last batch
that it returned. The augmentation of a sample is seeded by (seed, epoch, rank, worker, position), so it does not depend
on earlier random draws.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from .label_counts import LabelCounts
from .samples import BadSample, place, sample_id, stack
from .seeding import seeded
from .sharding import shard_sizes, split_strategy, worker_sizes
from .streams import Stream, StreamError
from .windows import WindowReader, in_groups


Sample = dict[str, Any]
# Position of a part of the stream: the source's state at the start of a window, the window's number, how many of its
# examples were taken, and how many samples the unfinished batch had when the window was read
Position = dict[str, Any]
BEGINNING: Position = {"source": None, "window": 0, "taken": 0, "pending": 0}

# Examples that are read at a time where nothing is shuffled
UNSHUFFLED_WINDOW = 32


class BatchStream(IterableDataset):
    """
    Iterates over one epoch of this process' part of a stream.

    Args:
        stream: the source.
        prepare: example to sample; raises [`BadSample`] for one to skip. A sample may have its [`LabelCounts`] as
            "label_counts", which are added up and not collated.
        batch_size: samples per batch on this process.
        rank, world_size: this process' number, and how many there are.
        seed: of shuffling and augmentation.
        shuffle_window: examples that are read ahead and permuted. 0 keeps the order of the source; otherwise shards are
            shuffled in every epoch, too.
        repeats: each sample comes this many times, augmented differently, on different processes if there are enough,
            and close together, as in DeiT's repeated augmentation. Limit the epoch to the usual number of samples: it
            then covers 1/`repeats` of the stream, a different part every time because shards are shuffled.
        drop_last: drop an incomplete last batch (training) or return it (evaluation).
        keep: chooses samples by name before anything is decoded, such as those that are not held out.
        max_bad_share: skipped samples above this share, of at least a hundred samples, are an error.
        strategy: "shards" or "examples", see [`pvt_hf.data.sharding.split_strategy`], which is the default. With
            "examples", no shuffling and no workers, the processes together have the batches of a single process.
        collate: list of samples to a batch, a dict. By default, tensors of equal shapes are stacked.
        group: undecoded example to a key. A batch has samples of one group, other than the last ones of each
            `shuffle_window`. (Images of similar shapes need little padding.) An epoch has the same samples, and as many
            batches, as without groups.

    Yields dicts: what `collate` returns, `sample_ids` (list of str), `skipped` (list of (name, reason) since the last
    batch) and `label_counts` if the samples have them. The last dict of an epoch may have no tensors, only `skipped`
    and `dropped` (number of samples in the incomplete batch).

    Raises:
        StreamError: the source fails repeatedly, or more than `max_bad_share` of the samples are bad.
    """

    def __init__(
        self,
        stream: Stream,
        prepare: Callable[[dict[str, Any]], Sample],
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle_window: int = 0,
        repeats: int = 1,
        drop_last: bool = False,
        keep: Callable[[str], bool] | None = None,
        max_bad_share: float = 0.01,
        strategy: str | None = None,
        collate: Callable[[list[Sample]], dict[str, Any]] = stack,
        group: Callable[[dict[str, Any]], Hashable] | None = None,
    ):
        if batch_size < 1 or repeats < 1:
            raise ValueError(f"batch_size and repeats must be at least 1, got {batch_size} and {repeats}.")
        if group is not None and (shuffle_window < batch_size or repeats > 1):
            raise ValueError(
                "Groups need a shuffle_window of at least one batch, and no repeats; got "
                f"shuffle_window={shuffle_window}, batch_size={batch_size} and repeats={repeats}."
            )
        self.stream, self.prepare, self.batch_size = stream, prepare, batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.shuffle_window, self.repeats, self.drop_last, self.keep = shuffle_window, repeats, drop_last, keep
        self.max_bad_share, self.collate, self.group = max_bad_share, collate, group
        self.strategy = strategy or split_strategy(stream.dataset.num_shards, world_size)
        self.epoch = 0
        # Processes p, p + 1, ... p + repeats - 1 read part p of the stream. By repeat, the part to read:
        self.part_of_repeat = [(rank - repeat) % world_size for repeat in range(repeats)]
        self.parts = {
            part: split_dataset_by_node(stream.dataset, part, world_size, strategy=self.strategy)
            for part in self.part_of_repeat
        }
        self._sizes: tuple[np.ndarray | None, np.ndarray | None] | None = None  # of the shards, and which are kept
        self._pending = 0  # samples in the unfinished batch
        self._state: dict[str, Any] | None = None
        self._resume: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, which decides about shuffling and augmentation."""
        self.epoch = epoch

    def worker_sizes(self, epoch: int, num_workers: int, rank: int | None = None) -> list[int] | None:
        """
        Number of samples, usable or not, that each loader worker reads in an epoch; None if that is unknown.

        Args:
            rank: of the process; default: this one.
        """
        if self.repeats > 1:
            return None
        if self._sizes is None:
            self._sizes = shard_sizes(self.stream), None
            if self.keep is not None:
                self._sizes = self._kept_sizes(self._sizes[0])
        sizes, kept = self._sizes
        if sizes is None:
            return None
        return worker_sizes(
            sizes,
            kept,
            rank=self.rank if rank is None else rank,
            world_size=self.world_size,
            num_workers=num_workers,
            strategy=self.strategy,
            shuffle_seed=self._shuffle_seed(epoch),
        )

    def _kept_sizes(self, sizes: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The sizes, and which examples `keep` keeps. Their names are read only from a folder, where that is quick."""
        if sizes is None or sizes.size == 0 or sizes.max() != 1 or sizes.min() != 1:
            return None, None
        first = next(iter(self.stream.dataset))[self.stream.image_column]
        if not first or first.get("bytes"):
            return None, None
        return sizes, np.array([self._is_kept(example) for example in self.stream.dataset])

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch that was returned."""
        return dict(self._state or {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration continues from `state`. Raises a ValueError for a stream with other settings."""
        for key, value in self._settings().items():
            if state and state[key] != value:
                raise ValueError(f"The stream was saved with {key}={state[key]} and cannot go on with {key}={value}.")
        self._resume = state or None

    def _settings(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "rank": self.rank,
            "world_size": self.world_size,
            "seed": self.seed,
            "shuffle_window": self.shuffle_window,
            "repeats": self.repeats,
            "strategy": self.strategy,
            "grouped": self.group is not None,
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id = worker.id if worker is not None else 0
        position: dict[str, Any] = {"parts": dict.fromkeys(self.parts, BEGINNING), "repeat": 0, "seen": 0, "bad": 0}
        if self._resume:
            self.epoch, position = self._resume["epoch"], dict(self._resume["position"])
            self._resume = None

        samples: list[Sample] = []
        ids: list[str] = []
        skipped: list[tuple[str, str]] = []
        self._pending = 0
        for example, following in self._examples(position["parts"], position["repeat"], worker_id):
            position.update(following)
            position["seen"] += 1
            name = sample_id(example, self.stream.image_column)
            try:
                with seeded((self.seed, self.epoch, self.rank, worker_id, position["seen"])):
                    samples.append(self.prepare(example))
            except BadSample as error:
                position["bad"] += 1
                skipped.append((name, f"{error}{place(example)}"))
                self._check_bad_share(position, skipped)
                continue
            ids.append(name)
            self._pending = len(samples) % self.batch_size
            if self._pending == 0:
                self._state = {**self._settings(), "epoch": self.epoch, "position": dict(position)}
                yield self._batch(samples, ids, skipped)
                samples, ids, skipped = [], [], []
        self._state = {**self._settings(), "epoch": self.epoch, "position": dict(position)}
        if samples and not self.drop_last:
            yield self._batch(samples, ids, skipped)
        elif samples or skipped:
            yield {"skipped": skipped, "dropped": len(samples)}

    def _batch(self, samples: list[Sample], ids: list[str], skipped: list[tuple[str, str]]) -> dict[str, Any]:
        counts = [sample.pop("label_counts") for sample in samples if "label_counts" in sample]
        batch = {**self.collate(samples), "sample_ids": ids, "skipped": skipped}
        return {**batch, "label_counts": LabelCounts.total(counts)} if counts else batch

    def _examples(
        self, positions: dict[int, Position], repeat: int, worker_id: int
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields (example, positions of the parts and repeat to resume from) in the order of training."""
        readers = {part: self._read_part(part, position, worker_id) for part, position in positions.items()}
        while True:
            # One example of each part, used by the repeats one after the other
            examples, following = {}, {}
            for part, reader in readers.items():
                found = next(reader, None)
                if found is None:
                    return
                examples[part], following[part] = found
            for index in range(repeat, self.repeats):
                is_last = index == self.repeats - 1
                after = {"parts": following, "repeat": 0} if is_last else {"parts": positions, "repeat": index + 1}
                yield examples[self.part_of_repeat[index]], after
            positions, repeat = following, 0

    def _read_part(self, part: int, position: Position, worker_id: int) -> Iterator[tuple[dict[str, Any], Position]]:
        """Yields (example, position to resume from) of one part."""
        size = self.shuffle_window or UNSHUFFLED_WINDOW
        reader = WindowReader(self.stream.name, partial(self._open_part, part), position["source"], size)
        window, skip, pending = position["window"], position["taken"], position["pending"]
        while True:
            start = reader.state
            examples = reader.read()
            if not examples:
                return
            if skip == 0:
                pending = self._pending
            order = self._order(examples, [self.seed, self.epoch, part, worker_id, window], pending)
            next_window = {**BEGINNING, "source": reader.state, "window": window + 1}
            for taken, index in enumerate(order[skip:], start=skip + 1):
                if self._is_kept(examples[index]):
                    here = {"source": start, "window": window, "taken": taken, "pending": pending}
                    yield examples[index], here if taken < len(examples) else next_window
            window, skip = window + 1, 0

    def _open_part(self, part: int, state: dict[str, Any] | None) -> datasets.IterableDataset:
        # `datasets` keeps the epoch of a stream in memory that workers and other streams share: copied, so that two
        # workers cannot both set it. The epoch decides how shards are shuffled; in epoch 0 they are not.
        source = copy.deepcopy(self.parts[part])
        source.set_epoch(self._shuffle_seed(self.epoch))
        if state is not None:
            source.load_state_dict(state)
        return source

    def _shuffle_seed(self, epoch: int) -> int:
        return 0 if self.shuffle_window == 0 else 1 + epoch + 1_000_003 * self.seed

    def _order(self, examples: list[dict[str, Any]], seed: list[int], pending: int) -> Sequence[int] | np.ndarray:
        """Indices of a window's examples in the order in which they are used."""
        if not self.shuffle_window:
            return range(len(examples))
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(examples))
        if self.group is None:
            return order
        groups = [self.group(example) if self._is_kept(example) else None for example in examples]
        return in_groups(order, groups, self.batch_size, pending, generator)

    def _is_kept(self, example: dict[str, Any]) -> bool:
        return self.keep is None or self.keep(sample_id(example, self.stream.image_column))

    def _check_bad_share(self, position: dict[str, Any], skipped: list[tuple[str, str]]) -> None:
        if position["bad"] > self.max_bad_share * max(position["seen"], 100):
            shown = "\n".join(f"  {name}: {reason}" for name, reason in skipped[-5:])
            raise StreamError(
                f"{position['bad']} of {position['seen']} samples of {self.stream.name} cannot be used, more than the "
                f"allowed share of {self.max_bad_share:.2%} (of 100 or more). The last of them:\n{shown}\n"
                "Repair or remove them, or raise --max_bad_share."
            )


def make_loader(batches: BatchStream, num_workers: int, pin_memory: bool = False) -> StatefulDataLoader:
    """
    The loader of a [`BatchStream`]. Its `state_dict` resumes it to the sample, with the same number of workers.

    Raises:
        ValueError: too few shards for repeats.
    """
    shards = batches.parts[batches.rank].num_shards // max(num_workers, 1)
    if shards < batches.repeats > 1:
        raise ValueError(
            f"With {batches.repeats} repeats an epoch covers 1/{batches.repeats} of the stream; with only {shards} "
            f"shard(s) per worker to shuffle, it would be much the same part every time. {batches.stream.name} has "
            f"{batches.stream.dataset.num_shards} shards for {batches.world_size} process(es) with {num_workers} "
            "worker(s): use fewer workers, more and smaller shards, or no repeats."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # inside torchdata
        return StatefulDataLoader(
            batches,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_the_main_process,
            # Its own generator, so that making a loader does not advance the one that training draws from
            generator=torch.Generator().manual_seed(batches.seed),
        )


def _unchanged(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def _leave_signals_to_the_main_process(worker_id: int) -> None:
    """
    Puts a worker in a process group of its own, which Ctrl-C and `kill` of the main group do not reach, so that the
    loop can finish its step. (Ignoring SIGTERM instead would keep the loader from ending its workers.)
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
