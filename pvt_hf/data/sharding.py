"""How a stream is divided over processes and loader workers, and what a run should know of it before it starts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from .streams import Stream


# From so many shards per process on, giving whole shards away unevenly costs less (1 % of an epoch at most) than having
# every process read everything to keep its share of the samples.
MANY_SHARDS = 100


def split_strategy(num_shards: int, world_size: int) -> str:
    """
    For `datasets.distributed.split_dataset_by_node`: "shards" gives whole shards to each process, "examples" has every
    process read all and keep every `world_size`-th sample.
    """
    even = num_shards % world_size == 0
    return "shards" if even or num_shards >= MANY_SHARDS * world_size else "examples"


def describe_split(stream: Stream, world_size: int, num_workers: int, strategy: str) -> list[str]:
    """
    Lines for the log of a run: shards, processes and workers, and then what idles or is read more than once.

    Args:
        num_workers: loader workers per process; 0 loads in the process itself.
        strategy: of [`split_strategy`].
    """
    num_shards, workers = stream.dataset.num_shards, max(num_workers, 1)
    per_process = num_shards // world_size if strategy == "shards" else num_shards
    lines = [f"{stream.name}: {num_shards} shard(s) for {world_size} process(es) with {num_workers} worker(s) each."]
    if strategy == "examples" and world_size > 1:
        lines.append(
            f"  Each process reads all shards and keeps one sample of {world_size}. If the number of shards were a "
            f"multiple of {world_size}, or at least {MANY_SHARDS * world_size}, each would be read by one process."
        )
    elif num_shards % world_size:
        lines.append(f"  {num_shards % world_size} process(es) have one shard more than the others: they stop earlier.")
    if workers > per_process:
        lines.append(
            f"  {workers - per_process} of {workers} workers per process idle: a worker needs a shard of its own. Use "
            f"num_workers {per_process}, or more and smaller shards."
        )
    return lines


def in_groups(
    order: Sequence[int] | np.ndarray,
    groups: Sequence[Hashable | None],
    batch_size: int,
    pending: int,
    generator: np.random.Generator,
) -> list[int]:
    """
    The indices of `order` rearranged: first what completes a batch that has `pending` samples already, then batches of
    one group each, in random order, then the rest of each group, and at the end those that are in no group.

    Args:
        order: indices of a window's examples, shuffled; their order within a group stays.
        groups: by index, the group or None.
    """
    members: dict[Hashable | None, list[int]] = {None: []}
    for index in order:
        members.setdefault(groups[index], []).append(int(index))
    in_none = members.pop(None)
    largest = max(members.values(), key=len, default=[])
    missing = -pending % batch_size
    first = largest[:missing]
    del largest[:missing]
    batches, rest = [], []
    for indices in members.values():
        whole = len(indices) - len(indices) % batch_size
        batches += [indices[start : start + batch_size] for start in range(0, whole, batch_size)]
        rest += indices[whole:]
    mixed = [index for place in generator.permutation(len(batches)) for index in batches[place]]
    return first + mixed + rest + in_none
