"""
Batches of a stream: processes and workers share every sample once, epochs differ, and resuming is exact.

    pytest tests/data/test_batches.py
"""

import pytest
import torch

from pvt_hf.data.batches import BatchStream, make_loader
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream

from ..support.classification_files import batches_of, ids_of, make_folder, random_shift, write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), {"cat": 13, "dog": 9, "owl": 1})


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("parquet"))


@pytest.mark.parametrize("source", ["folder", "parquet"])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 2), (3, 0)])
def test_processes_and_workers_share_every_sample_once(source, world_size, num_workers, request):
    stream = open_classification_stream(str(request.getfixturevalue(source)))
    loaders = [
        make_loader(batches_of(stream, rank=rank, world_size=world_size, shuffle_window=5), num_workers)
        for rank in range(world_size)
    ]
    ids = ids_of(loaders)
    assert len(ids) == len(set(ids)) == stream.num_samples


def test_incomplete_batches_are_given_in_evaluation_and_counted_in_training(folder):
    stream = open_classification_stream(str(folder))
    given = list(batches_of(stream))
    assert [len(batch["sample_ids"]) for batch in given] == [4] * 5 + [3]
    kept = list(batches_of(stream, drop_last=True))
    assert len(kept) == 6 and kept[-1] == {"skipped": [], "dropped": 3}


def test_epochs_differ_and_repeat(folder):
    batches = batches_of(open_classification_stream(str(folder)), random_shift, shuffle_window=10, seed=3)
    orders, pixels = [], []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        out = list(batches)
        orders.append([name for batch in out for name in batch["sample_ids"]])
        pixels.append(torch.cat([batch["pixel_values"] for batch in out]))
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert orders[0] == orders[2] and torch.equal(pixels[0], pixels[2])
    by_name = [dict(zip(order, pixel)) for order, pixel in zip(orders, pixels)]
    assert not any(torch.equal(by_name[0][name], by_name[1][name]) for name in orders[0]), "augmentation is redrawn"


def test_augmentation_leaves_the_callers_random_state_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(make_loader(batches_of(open_classification_stream(str(folder)), random_shift), 0))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_resuming_after_any_batch_continues_exactly(source, num_workers, request):
    stream = open_classification_stream(str(request.getfixturevalue(source)))

    def loader():
        batches = batches_of(stream, random_shift, batch_size=3, shuffle_window=4, seed=1, drop_last=True)
        batches.set_epoch(2)
        return make_loader(batches, num_workers)

    whole, states, running = [], [], loader()
    for batch in running:
        whole.append(batch)
        states.append(running.state_dict())
    for taken in range(0, len(whole), 2 if num_workers == 0 else 3):
        resumed = loader()
        resumed.load_state_dict(states[taken])
        rest = list(resumed)
        assert len(rest) == len(whole) - taken - 1
        for one, other in zip(rest, whole[taken + 1 :]):
            assert one.get("sample_ids") == other.get("sample_ids") and one.get("dropped") == other.get("dropped")
            if "pixel_values" in one:
                assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_resuming_with_other_settings_is_refused(folder):
    stream = open_classification_stream(str(folder))
    batches = batches_of(stream)
    next(iter(batches))
    with pytest.raises(ValueError, match="batch_size=4 and cannot go on with batch_size=5"):
        batches_of(stream, batch_size=5).load_state_dict(batches.state_dict())


def test_repeats_need_shards_to_shuffle():
    stream = open_classification_stream("digits", "train", image_size=32)
    sample = ClassificationSample(stream, lambda image: torch.zeros(3, 8, 8))
    batches = BatchStream(stream, sample, 4, shuffle_window=8, repeats=3)
    make_loader(batches, 4)
    with pytest.raises(ValueError, match="only 2 shard.* per worker"):
        make_loader(batches, 8)


def test_repeats_in_one_process_are_different_augmentations_of_one_sample():
    stream = open_classification_stream("digits", "train", image_size=32)
    sample = ClassificationSample(stream, lambda image: torch.rand(1))
    batch = next(iter(BatchStream(stream, sample, 12, shuffle_window=8, repeats=3)))
    ids = batch["sample_ids"]
    assert all(ids[i] == ids[i + 1] == ids[i + 2] for i in range(0, 12, 3)) and len(set(ids)) == 4
    assert len(set(batch["pixel_values"].flatten().tolist())) == 12
