"""
Batches from a stream: sharded over processes and workers, shuffled, fault tolerant, and resumable to the sample.

A batch is made inside the worker, so that a loader with any number of workers knows which samples were skipped, and so
that its state is that of the last batch handed out. Nothing random depends on what ran before: a sample's augmentation
is drawn from (seed, epoch, rank, worker, position).
"""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from .samples import BadSample, sample_id, stack
from .streams import Stream


Sample = dict[str, torch.Tensor]


class BatchStream(IterableDataset):
    """
    Iterates over one epoch of this process' part of a stream.

    Args:
        stream: the source.
        prepare: example to sample; raises [`BadSample`] for one to skip.
        batch_size: samples per batch on this process.
        rank, world_size: this process among all. Whole shards go to a process if their number divides evenly,
            otherwise every `world_size`-th example.
        seed: of shuffling and augmentation.
        shuffle_window: examples that are read ahead and permuted; 0 keeps the order of the source. Shards are
            shuffled in every epoch unless it is 0.
        drop_last: whether an incomplete last batch is dropped (training) or given (evaluation).
        keep: chooses samples by name before anything is decoded (to hold some out).
        max_bad_share: share of skipped samples above which iteration stops; a hundred samples at least are the base.

    Yields dicts: the stacked tensors, `sample_ids` (list of str) and `skipped` (list of (name, reason) since the last
    batch). The final dict of an epoch may have no tensors: only `skipped` and `dropped`, the count of the rest.

    Raises:
        RuntimeError: more than `max_bad_share` of the samples are bad; the message names some.
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
        drop_last: bool = False,
        keep: Callable[[str], bool] | None = None,
        max_bad_share: float = 0.01,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.stream, self.prepare, self.batch_size = stream, prepare, batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.shuffle_window, self.drop_last, self.keep = shuffle_window, drop_last, keep
        self.max_bad_share = max_bad_share
        self.epoch = 0
        self.source = split_dataset_by_node(stream.dataset, rank, world_size)
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
            if state and state[key] != value:
                raise ValueError(f"The stream was saved with {key}={state[key]} and cannot go on with {key}={value}.")
        self._resume = state or None

    def _identity(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "rank": self.rank,
            "world_size": self.world_size,
            "seed": self.seed,
            "shuffle_window": self.shuffle_window,
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        worker_id = worker.id if worker is not None else 0
        resume, self._resume = self._resume, None
        if resume:
            self.epoch = resume["epoch"]
        position = (
            dict(resume["position"]) if resume else {"window": 0, "taken": 0, "seen": 0, "bad": 0, "source": None}
        )
        # A copy of one's own: the epoch of a `datasets` stream lies in memory that workers and other streams share, and
        # two workers that set it at the same time add up. By it shards are shuffled, and not at all in epoch 0.
        source = copy.deepcopy(self.source)
        source.set_epoch(0 if self.shuffle_window == 0 else 1 + self.epoch + 1_000_003 * self.seed)

        samples, ids, skipped = [], [], []
        for example, place in self._examples(source, position, worker_id):
            position.update(place)
            name = sample_id(example, self.stream.image_column)
            if self.keep is not None and not self.keep(name):
                continue
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
            if len(samples) == self.batch_size:
                self._state = {**self._identity(), "epoch": self.epoch, "position": dict(position)}
                yield {**stack(samples), "sample_ids": ids, "skipped": skipped}
                samples, ids, skipped = [], [], []
        self._state = {**self._identity(), "epoch": self.epoch, "position": dict(position)}
        if samples and not self.drop_last:
            yield {**stack(samples), "sample_ids": ids, "skipped": skipped}
        elif samples or skipped:
            yield {"skipped": skipped, "dropped": len(samples)}

    def _examples(
        self, source: datasets.IterableDataset, position: dict[str, Any], worker_id: int
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Examples with their place: the source's state at the start of the window, window number, place in it."""
        if position["source"] is not None:
            source.load_state_dict(position["source"])
        examples_left, window, start = iter(source), position["window"], position["source"]
        skip, size = position["taken"], max(self.shuffle_window, 1)
        while True:
            examples = []
            for example in examples_left:
                examples.append(example)
                if len(examples) == size:
                    break
            if not examples:
                return
            order = np.arange(len(examples))
            if self.shuffle_window:
                order = np.random.default_rng([self.seed, self.epoch, self.rank, worker_id, window]).permutation(
                    len(examples)
                )
            # The state is that after the window's last example: the start of the next window.
            following = source.state_dict()
            for taken, index in enumerate(order[skip:], start=skip + 1):
                if taken < len(examples):
                    yield examples[index], {"window": window, "taken": taken, "source": start}
                else:
                    yield examples[index], {"window": window + 1, "taken": 0, "source": following}
            window, skip, start = window + 1, 0, following

    def _check_bad_share(self, position: dict[str, Any], skipped: list[tuple[str, str]]) -> None:
        if position["bad"] > self.max_bad_share * max(position["seen"], 100):
            shown = "\n".join(f"  {name}: {reason}" for name, reason in skipped[-5:])
            raise RuntimeError(
                f"{position['bad']} of {position['seen']} samples of {self.stream.name} cannot be used, more than the "
                f"allowed share of {self.max_bad_share:.2%}. The last of them:\n{shown}\n"
                "Mend or remove them, or raise max_bad_share."
            )


@contextlib.contextmanager
def _isolated_random(key: tuple[int, ...]) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's generators from `key` and puts their states back afterwards."""
    seeds = np.random.SeedSequence(key).generate_state(3)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def make_loader(batches: BatchStream, num_workers: int, pin_memory: bool = False) -> StatefulDataLoader:
    """The loader of a [`BatchStream`]; its `state_dict` resumes it to the sample, with the same number of workers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata's own affair
        return StatefulDataLoader(
            batches,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_identity_collate,
            # Its own generator: making a loader must not advance the one that training draws from.
            generator=torch.Generator().manual_seed(batches.seed),
        )


def _identity_collate(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
