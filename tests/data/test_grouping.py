"""
Batches of one group: few are mixed, every example comes once, and resuming is exact.

    pytest tests/data/test_grouping.py
"""

import datasets
import numpy as np
import pytest
import torch

from pvt_hf.data.batches import BatchStream, make_loader
from pvt_hf.data.samples import BadSample
from pvt_hf.data.streams import Stream
from pvt_hf.data.windows import in_groups


COUNT, GROUPS, BATCH_SIZE = 400, 3, 4


def group_of(index: int) -> int:
    return (index * index + index // 7) % GROUPS


def numbers(numbers: list[int]):
    for number in numbers:
        yield {"image": None, "id": number}


@pytest.fixture(scope="module")
def stream():
    features = datasets.Features({"image": datasets.Image(), "id": datasets.Value("int64")})
    dataset = datasets.IterableDataset.from_generator(
        numbers, features=features, gen_kwargs={"numbers": list(range(COUNT))}
    )
    return Stream("numbers", dataset.decode(False), num_samples=COUNT)


def prepare(example):
    if example["id"] % 97 == 5:
        raise BadSample("one of five")
    return {"group": torch.tensor(group_of(example["id"])), "noise": torch.rand(())}


def prepare_all(example):
    return {"group": torch.tensor(group_of(example["id"]))}


def grouped(stream, prepare=prepare, **settings):
    options = {"shuffle_window": 101, "seed": 3, "max_bad_share": 0.1, "group": lambda example: group_of(example["id"])}
    return BatchStream(stream, prepare, BATCH_SIZE, **{**options, **settings})


def count_mixed(batches) -> int:
    return sum(len(batch["group"].unique()) > 1 for batch in batches if "group" in batch)


def ids_of(batches) -> list[int]:
    return [int(name) for batch in batches for name in batch.get("sample_ids", [])]


def test_the_order_of_a_window_by_hand():
    groups = ["a", "b", "a", None, "b", "a", "a", "a", "b"]
    order = [8, 7, 3, 6, 5, 4, 2, 1, 0]
    # "a": 7 6 5 2 0; "b": 8 4 1. One is missing for a batch, taken from the larger group; no rest of "a", one of "b".
    for seed in range(8):
        found = in_groups(order, groups, 2, 1, np.random.default_rng(seed))
        assert found[0] == 7 and found[-2:] == [1, 3]
        pairs = [tuple(found[start : start + 2]) for start in (1, 3, 5)]
        assert sorted(pairs) == [(2, 0), (6, 5), (8, 4)]
    orders = {tuple(in_groups(order, groups, 2, 1, np.random.default_rng(seed))) for seed in range(100)}
    assert len(orders) == 6  # of three batches
    assert in_groups([1, 0], [None, None], 2, 1, np.random.default_rng(0)) == [1, 0]
    assert in_groups([1, 0], ["a", "b"], 4, 1, np.random.default_rng(0)) == [1, 0]


@pytest.mark.parametrize("window", [100, 101, 399, COUNT])
def test_only_the_rests_are_mixed(window, stream):
    """
    A window leaves at most three samples of each of three groups: two mixed batches, and one that the next window
    completes. Batches after that are of one group again.
    """
    counts, orders = [], []
    for group in ({}, {"group": None}):
        batches = list(grouped(stream, prepare_all, shuffle_window=window, **group))
        assert len(batches) == COUNT / BATCH_SIZE and sorted(ids_of(batches)) == list(range(COUNT))
        counts.append(count_mixed(batches))
        orders.append(ids_of(batches))
    assert counts[0] <= 3 * -(-COUNT // window) and counts[1] > 80
    assert orders[0] != orders[1]


def test_what_is_unusable_or_held_out_does_not_put_the_next_windows_out_of_step(stream):
    def keep(name):
        return int(name) % 10 != 3

    plain = [batch for batch in grouped(stream, keep=keep, group=None) if "group" in batch]
    batches = list(grouped(stream, keep=keep))
    assert (
        sorted(ids_of(batches))
        == sorted(ids_of(plain))
        == [number for number in range(COUNT) if number % 10 != 3 and number % 97 != 5]
    )
    # Held-out examples mix no batches; each of four unusable ones mixes a batch at every change of group in its window.
    assert count_mixed(grouped(stream, prepare_all, keep=keep)) <= 12
    assert count_mixed(batches) <= 60 < 75 < count_mixed(plain)


def test_epochs_have_other_batches(stream):
    orders, batches = [], grouped(stream)
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append(ids_of(batches))
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_processes_have_as_many_batches_as_without_groups(world_size, num_workers, stream):
    lengths, seen = [], []
    for group in ({}, {"group": None}):
        for rank in range(world_size):
            place = {"rank": rank, "world_size": world_size}
            batches = list(make_loader(grouped(stream, prepare_all, drop_last=True, **place, **group), num_workers))
            lengths.append(sum("group" in batch for batch in batches))
            seen += ids_of(batches) if not group else []
    assert lengths[:world_size] == lengths[world_size:] and len(set(lengths)) == 1
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_after_any_batch_continues_exactly(num_workers, stream):
    """Also in windows that begin within a batch, after unusable examples, and at a window's end."""

    def loader():
        batches = grouped(stream, shuffle_window=21, keep=lambda name: int(name) % 10 != 3, drop_last=True)
        batches.set_epoch(2)
        return make_loader(batches, num_workers)

    whole, states, running = [], [], loader()
    for batch in running:
        whole.append(batch)
        states.append(running.state_dict())
    assert len(whole) > 80
    for taken in range(0, len(whole), 3 if num_workers == 0 else 20):
        resumed = loader()
        resumed.load_state_dict(states[taken])
        rest = list(resumed)
        assert len(rest) == len(whole) - taken - 1
        for one, other in zip(rest, whole[taken + 1 :]):
            assert one.keys() == other.keys() and one["skipped"] == other["skipped"]
            assert one.get("sample_ids") == other.get("sample_ids") and one.get("dropped") == other.get("dropped")
            assert "noise" not in one or torch.equal(one["noise"], other["noise"])


def test_resuming_with_groups_from_a_state_without_is_refused(stream):
    batches = grouped(stream, group=None)
    next(iter(batches))
    with pytest.raises(ValueError, match="grouped=False and cannot go on with grouped=True"):
        grouped(stream).load_state_dict(batches.state_dict())


def test_what_grouping_needs(stream):
    for settings in ({"shuffle_window": 3}, {"repeats": 2}):
        with pytest.raises(ValueError, match="Groups need a shuffle_window of at least one batch, and no repeats"):
            grouped(stream, **settings)
