"""How a stream is divided over processes and loader workers, and what to tell the user about it before a run."""

from __future__ import annotations

import numpy as np
from datasets.utils.sharding import _shuffle_gen_kwargs

from .streams import Stream


# With at least this many shards per process, dealing out whole shards unevenly wastes at most 1 % of an epoch, which is
# less than if every process read everything and kept its share of the samples.
MANY_SHARDS = 100


def split_strategy(num_shards: int, world_size: int) -> str:
    """
    The strategy for `datasets.distributed.split_dataset_by_node`: with "shards" each process reads whole shards, with
    "examples" each reads everything and keeps every `world_size`-th sample.
    """
    even = num_shards % world_size == 0
    return "shards" if even or num_shards >= MANY_SHARDS * world_size else "examples"


def shard_sizes(stream: Stream) -> np.ndarray | None:
    """Examples in each shard of a stream, in order; None if unknown."""
    num_shards = stream.dataset.num_shards
    if stream.shard_sizes is not None and len(stream.shard_sizes) == num_shards:
        return np.array(stream.shard_sizes)
    if stream.num_samples == num_shards:  # a folder: each file is a shard
        return np.ones(num_shards, dtype=int)
    return np.array([stream.num_samples]) if num_shards == 1 and stream.num_samples is not None else None


def worker_sizes(
    sizes: np.ndarray,
    kept: np.ndarray | None,
    *,
    rank: int,
    world_size: int,
    num_workers: int,
    strategy: str,
    shuffle_seed: int,
) -> list[int]:
    """
    Number of examples that each loader worker of a process reads in one epoch, as `datasets` divides them.

    Args:
        sizes: examples in each shard.
        kept: whether each example is used, if every shard has one; None: all are.
        strategy: from [`split_strategy`].
        shuffle_seed: the epoch given to `datasets`, by which it shuffles the shards; 0: it does not.
    """
    order = np.arange(len(sizes))
    if shuffle_seed and (kept is not None or sizes.min() != sizes.max()):
        shuffled = _shuffle_gen_kwargs(np.random.default_rng(shuffle_seed), {"shards": order.tolist()})
        order = np.array(shuffled["shards"])
    if strategy == "shards":
        order, rank, world_size = order[rank::world_size], 0, 1
    found = []
    for worker in range(max(num_workers, 1)):
        shards = order[worker :: max(num_workers, 1)]
        if kept is None:
            rounds, rest = divmod(int(sizes[shards].sum()), world_size)
            found.append(rounds + (rest > rank))
        else:
            found.append(int(kept[shards][rank::world_size].sum()))
    return found


def describe_split(stream: Stream, world_size: int, num_workers: int, strategy: str) -> list[str]:
    """
    Lines for the log of a run: shards, processes and workers, and which of them idle or read the same data.

    Args:
        num_workers: loader workers per process; with 0 the process loads by itself.
        strategy: from [`split_strategy`].
    """
    num_shards, workers = stream.dataset.num_shards, max(num_workers, 1)
    per_process = num_shards // world_size if strategy == "shards" else num_shards
    lines = [f"{stream.name}: {num_shards} shard(s) for {world_size} process(es) with {num_workers} worker(s) each."]
    if strategy == "examples" and world_size > 1:
        lines.append(
            f"  Each process reads all shards and keeps one sample in {world_size}. With a number of shards that is a "
            f"multiple of {world_size}, or at least {MANY_SHARDS * world_size}, each shard is read by one process only."
        )
    elif num_shards % world_size:
        lines.append(
            f"  {num_shards % world_size} process(es) have one shard more than the others, which stop earlier."
        )
    if workers > per_process:
        lines.append(
            f"  {workers - per_process} of {workers} workers per process idle: a worker needs a shard of its own. Use "
            f"num_workers {per_process}, or more and smaller shards."
        )
    return lines
