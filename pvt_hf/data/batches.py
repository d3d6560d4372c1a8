"""
Batches from a stream: sharded over processes and workers, shuffled, fault tolerant, and resumable to the sample.

A batch is made inside the worker, so that a loader with any number of workers knows which samples were skipped, and so
that its state is that of the last batch handed out. Nothing random depends on what ran before: a sample's augmentation
is drawn from (seed, epoch, rank, worker, position).
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from .samples import BadSample, sample_id, stack
from .sharding import in_groups, split_strategy
from .streams import Stream


Sample = dict[str, Any]
# Seconds before each new attempt to read from a source that failed: a network share that comes back, say
RETRY_SECONDS = (1.0, 4.0, 10.0)

# Examples that are read at a time where nothing is shuffled
UNSHUFFLED_WINDOW = 32


class StreamError(RuntimeError):
    """A stream that cannot go on: its source cannot be read, or too many of its samples are unusable."""


class BatchStream(IterableDataset):
    """
    Iterates over one epoch of this process' part of a stream.

    Args:
        stream: the source.
        prepare: example to sample; raises [`BadSample`] for one to skip.
        batch_size: samples per batch on this process.
        rank, world_size: this process among all.
        seed: of shuffling and augmentation.
        shuffle_window: examples that are read ahead and permuted; 0 keeps the order of the source. Shards are
            shuffled in every epoch unless it is 0.
        repeats: how often each sample comes, in other augmentations, on that many different processes (as far as there
            are so many) and within so many samples of each, as DeiT's repeated augmentation does. Give the loop a
            limit: an epoch of as many samples as without repeats is over after the first 1/`repeats` of the stream,
            which is another part every time because shards are shuffled.
        drop_last: whether an incomplete last batch is dropped (training) or given (evaluation).
        keep: chooses samples by name before anything is decoded (to hold some out).
        max_bad_share: share of skipped samples above which iteration stops; a hundred samples at least are the base.
        strategy: "shards" or "examples", see [`pvt_hf.data.sharding.split_strategy`], which chooses by default. With
            "examples", no shuffling and no workers, the processes' batches together are those of a single process.
        collate: list of samples to a batch, a dict; by default tensors of equal shapes are stacked.
        group: undecoded example to its group, any key: samples of a batch are of one group, but for the batches that
            the rest of each group in a `shuffle_window` makes. (Images of like shapes are padded little.) Which samples
            an epoch has, and how many batches, is the same as without.

    Yields dicts: what `collate` makes, `sample_ids` (list of str) and `skipped` (list of (name, reason) since the last
    batch). The final dict of an epoch may have no tensors: only `skipped` and `dropped`, the count of the rest.

    Raises:
        StreamError: the source fails again and again, or more than `max_bad_share` of the samples are bad.
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
                "Batches of one group are made within a shuffle_window of at least a batch, and without repeats; got "
                f"shuffle_window={shuffle_window}, batch_size={batch_size} and repeats={repeats}."
            )
        self.stream, self.prepare, self.batch_size = stream, prepare, batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.shuffle_window, self.repeats, self.drop_last, self.keep = shuffle_window, repeats, drop_last, keep
        self.max_bad_share, self.collate, self.group = max_bad_share, collate, group
        self.strategy = strategy or split_strategy(stream.dataset.num_shards, world_size)
        self.epoch = 0
        # Part p of the stream is also read by the processes p + 1, ... p + repeats - 1.
        self.turns = [(rank - turn) % world_size for turn in range(repeats)]
        self.parts = {
            part: split_dataset_by_node(stream.dataset, part, world_size, strategy=self.strategy) for part in self.turns
        }
        self._pending = 0  # samples of the batch that is being made
        self._state: dict[str, Any] | None = None
        self._resume: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration runs; shuffling and augmentation follow it."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands after the last batch it gave."""
        return dict(self._state or {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on from `state`. Raises a ValueError if batch size, seed or split differ."""
        for key, value in self._identity().items():
            saved = (state or {}).get(key, False)  # states of before there were groups do not say so
            if state and saved != value:
                raise ValueError(f"The stream was saved with {key}={saved} and cannot go on with {key}={value}.")
        self._resume = state or None

    def _identity(self) -> dict[str, Any]:
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
        resume, self._resume = self._resume, None
        start = {"window": 0, "taken": 0, "pending": 0, "source": None}
        position: dict[str, Any] = {"parts": dict.fromkeys(self.parts, start), "turn": 0, "seen": 0, "bad": 0}
        if resume:
            self.epoch, position = resume["epoch"], dict(resume["position"])

        samples: list[Sample] = []
        ids: list[str] = []
        skipped: list[tuple[str, str]] = []
        self._pending = 0
        for example, place in self._turns(position["parts"], position["turn"], worker_id):
            position.update(place)
            name = sample_id(example, self.stream.image_column)
            position["seen"] += 1
            try:
                with _isolated_random((self.seed, self.epoch, self.rank, worker_id, position["seen"])):
                    samples.append(self.prepare(example))
            except BadSample as error:
                position["bad"] += 1
                skipped.append((name, str(error)))
                self._check_bad_share(position, skipped)
                continue
            ids.append(name)
            self._pending = len(samples) % self.batch_size
            if len(samples) == self.batch_size:
                self._state = {**self._identity(), "epoch": self.epoch, "position": dict(position)}
                yield {**self.collate(samples), "sample_ids": ids, "skipped": skipped}
                samples, ids, skipped = [], [], []
        self._state = {**self._identity(), "epoch": self.epoch, "position": dict(position)}
        if samples and not self.drop_last:
            yield {**self.collate(samples), "sample_ids": ids, "skipped": skipped}
        elif samples or skipped:
            yield {"skipped": skipped, "dropped": len(samples)}

    def _turns(
        self, places: dict[int, dict], first_turn: int, worker_id: int
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Examples in the order of training, each with the places in the parts and the turn that follow it."""
        readers = {part: self._examples(part, place, worker_id) for part, place in places.items()}
        while True:
            # One example of every part; the turns give them out. Without repeats that is one of each.
            examples, following = {}, {}
            for part, reader in readers.items():
                found = next(reader, None)
                if found is None:
                    return
                examples[part], following[part] = found
            for turn in range(first_turn, self.repeats):
                last = turn == self.repeats - 1
                place = {"parts": following, "turn": 0} if last else {"parts": places, "turn": turn + 1}
                yield examples[self.turns[turn]], place
            places, first_turn = following, 0

    def _examples(
        self, part: int, place: dict[str, Any], worker_id: int
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Examples of a part with the place behind each: source's state before the window, window, taken of it."""
        window, skip, start = place["window"], place["taken"], place["source"]
        size = self.shuffle_window or UNSHUFFLED_WINDOW
        source: Any = None
        examples_left: Iterator[dict[str, Any]] | None = None
        while True:
            for wait in (*RETRY_SECONDS, None):
                try:
                    if examples_left is None:
                        source, examples_left = self._open(part, start)
                    examples = list(islice(examples_left, size))
                    break
                except Exception as error:  # whatever a file system, a network or a damaged archive may raise
                    examples_left = (
                        None  # an iterator that has raised is at its end: opened again at the window's start
                    )
                    if wait is None:
                        raise StreamError(
                            f"{self.stream.name} could not be read, also after {len(RETRY_SECONDS)} new attempts: "
                            f"{type(error).__name__}: {error}"
                        ) from error
                    time.sleep(wait)
            if not examples:
                return
            order: Sequence[int] | np.ndarray = np.arange(len(examples))
            # As it was at the window's start; states of before there were groups do not have it.
            pending = place.get("pending", 0) if skip else self._pending
            if self.shuffle_window:
                rng = np.random.default_rng([self.seed, self.epoch, part, worker_id, window])
                shuffled = rng.permutation(len(examples))
                order = shuffled
                if self.group is not None:
                    groups = [self._group_of(example) for example in examples]
                    order = in_groups(shuffled, groups, self.batch_size, pending, rng)
            here = {"window": window, "pending": pending, "source": start}
            # The state is that after the window's last example: the start of the next window.
            following = source.state_dict()
            behind = {"window": window + 1, "taken": 0, "pending": 0, "source": following}
            for taken, index in enumerate(order[skip:], start=skip + 1):
                if self.keep is not None and not self.keep(sample_id(examples[index], self.stream.image_column)):
                    continue
                yield examples[index], {**here, "taken": taken} if taken < len(examples) else behind
            window, skip, start = window + 1, 0, following

    def _group_of(self, example: dict[str, Any]) -> Hashable | None:
        kept = self.keep is None or self.keep(sample_id(example, self.stream.image_column))
        return self.group(example) if kept and self.group is not None else None

    def _open(self, part: int, state: dict[str, Any] | None) -> tuple[datasets.IterableDataset, Iterator]:
        # A copy of one's own: the epoch of a `datasets` stream lies in memory that workers and other streams share, and
        # two workers that set it at the same time add up. By it shards are shuffled, and not at all in epoch 0.
        source = copy.deepcopy(self.parts[part])
        source.set_epoch(0 if self.shuffle_window == 0 else 1 + self.epoch + 1_000_003 * self.seed)
        if state is not None:
            source.load_state_dict(state)
        return source, iter(source)

    def _check_bad_share(self, position: dict[str, Any], skipped: list[tuple[str, str]]) -> None:
        if position["bad"] > self.max_bad_share * max(position["seen"], 100):
            shown = "\n".join(f"  {name}: {reason}" for name, reason in skipped[-5:])
            raise StreamError(
                f"{position['bad']} of {position['seen']} samples of {self.stream.name} cannot be used, more than the "
                f"allowed share of {self.max_bad_share:.2%} (of 100 or more). The last of them:\n{shown}\n"
                "Mend or remove them, or raise max_bad_share."
            )


# Lent to the samples instead of the caller's: saving and restoring NumPy's own state costs more than decoding a digit
_NUMPY_GENERATOR = np.random.MT19937(0)


@contextlib.contextmanager
def _isolated_random(key: tuple[int, ...]) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's generators from `key` and puts back what was there afterwards."""
    seeds = np.random.SeedSequence(key).generate_state(3)
    # (NumPy's stubs leave the two functions out.)
    own_generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    states = random.getstate(), torch.get_rng_state()
    np.random.set_bit_generator(_NUMPY_GENERATOR)  # type: ignore[attr-defined]
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_bit_generator(own_generator)  # type: ignore[attr-defined]
        torch.set_rng_state(states[1])


def make_loader(batches: BatchStream, num_workers: int, pin_memory: bool = False) -> StatefulDataLoader:
    """
    The loader of a [`BatchStream`]; its `state_dict` resumes it to the sample, with the same number of workers.

    Raises:
        ValueError: too few shards for repeats.
    """
    shards = batches.parts[batches.rank].num_shards // max(num_workers, 1)
    if shards < batches.repeats > 1:
        raise ValueError(
            f"With {batches.repeats} repeats an epoch takes 1/{batches.repeats} of the stream; with only {shards} "
            f"shard(s) per worker to shuffle it would be much the same part every time. {batches.stream.name} has "
            f"{batches.stream.dataset.num_shards} shards for {batches.world_size} process(es) with {num_workers} "
            "worker(s): use fewer workers, more and smaller shards, or no repeats."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata's own affair
        return StatefulDataLoader(
            batches,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_identity_collate,
            worker_init_fn=_leave_signals_to_the_main_process,
            # Its own generator: making a loader must not advance the one that training draws from.
            generator=torch.Generator().manual_seed(batches.seed),
        )


def _identity_collate(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def _leave_signals_to_the_main_process(worker_id: int) -> None:
    """
    Ctrl-C and `kill` of a process group do not reach a worker in a group of its own: the loop finishes its step with
    living workers. (A worker that ignored SIGTERM could not be ended by the loader either.)
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
