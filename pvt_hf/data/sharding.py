"""How a stream is divided over processes and loader workers, and what a run should know of it before it starts."""

from __future__ import annotations

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
