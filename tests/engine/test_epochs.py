"""
What is announced is what comes: samples, steps, and a schedule that ends with the last one.

    pytest tests/engine/test_epochs.py
"""

import math
import re

import pytest

from pvt_hf.data.batches import make_loader
from pvt_hf.engine.epochs import EpochLengths
from pvt_hf.engine.run import HeldOut
from pvt_hf.tasks.classification.streams import open_classification_stream

from ..support.classification_files import batches_of, make_folder, write_parquet
from ..support.training_runs import make_photos, train_here


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    folder = make_folder(root / "folder", {"cat": 13, "dog": 9, "owl": 1})
    (root / "parquet").mkdir()
    return {"folder": folder, "parquet": write_parquet(root / "parquet")}


@pytest.mark.parametrize(
    ("source", "world_size", "num_workers", "shuffle_window", "share"),
    [
        ("folder", 1, 0, 0, 0.0), ("folder", 1, 3, 5, 0.0), ("folder", 2, 2, 5, 0.0), ("folder", 3, 0, 0, 0.4),
        ("folder", 2, 2, 5, 0.4), ("parquet", 1, 2, 5, 0.0), ("parquet", 2, 0, 5, 0.0), ("parquet", 2, 2, 0, 0.0),
        ("parquet", 3, 2, 5, 0.0),
    ],
)  # fmt: skip
def test_the_steps_that_come(sources, source, world_size, num_workers, shuffle_window, share):
    """Against the loaders of every process, in two epochs."""
    stream = open_classification_stream(str(sources[source]))

    def of_rank(rank):
        keep = HeldOut(share, wanted=False) if share else None
        return batches_of(
            stream, batch_size=2, rank=rank, world_size=world_size, shuffle_window=shuffle_window, drop_last=True,
            keep=keep,
        )  # fmt: skip

    lengths = EpochLengths(of_rank(0), stream.num_samples, 1, num_workers)
    assert lengths.exact
    for epoch in (0, 1):
        found = []
        for rank in range(world_size):
            batches = of_rank(rank)
            batches.set_epoch(epoch)
            found.append(sum("sample_ids" in batch for batch in make_loader(batches, num_workers)))
        assert lengths.steps(epoch) == min(found)


def test_streams_of_unknown_shards_are_estimated_and_said(sources):
    stream = open_classification_stream(str(sources["parquet"]))
    object.__setattr__(stream, "shard_sizes", None)
    lengths = EpochLengths(batches_of(stream), stream.num_samples, 1, 0)
    assert not lengths.exact and lengths.steps(0) == 5


def test_too_few_samples(sources):
    stream = open_classification_stream(str(sources["folder"]))
    message = r"23 samples do not fill one step of 16 .* with 1 process\(es\) and 2 loader workers.*fewer --num_workers"
    with pytest.raises(ValueError, match=message):
        EpochLengths(batches_of(stream, batch_size=16), 23, 1, 2)
    EpochLengths(batches_of(stream, batch_size=16), 23, 1, 0)  # the advice works
    with pytest.raises(ValueError, match="is unknown: give --samples_per_epoch"):
        EpochLengths(batches_of(stream), None, 1, 0)


def test_announced_with_what_is_left_over(tmp_path, capsys):
    photos = make_photos(tmp_path / "photos", 17)
    _, report = train_here(photos, tmp_path / "run")
    assert "An epoch has 4 steps of 8 samples, 32 of 34. 8 steps in 2 epoch(s)." in capsys.readouterr().out
    assert (report["steps"], report["trained"]) == (8, 64)


def test_more_samples_per_epoch_than_there_are(tmp_path, capsys):
    photos = make_photos(tmp_path / "photos", 16)
    _, report = train_here(photos, tmp_path / "run", samples_per_epoch=1000)
    assert "An epoch has 4 steps of 8 samples, 32. 8 steps" in capsys.readouterr().out
    assert report["steps"] == 8


def test_unusable_samples_shorten_the_schedule(tmp_path, capsys):
    """Three of 32 are damaged: three steps and not four come. From the second epoch on the schedule knows."""
    photos = make_photos(tmp_path / "photos", 16)
    for name in ("3.jpg", "7.jpg", "9.jpg"):
        (photos / "apple" / name).write_bytes(b"no image")
    options = {"epochs": 2, "max_bad_share": 0.5, "warmup_epochs": 0.0, "min_learning_rate": 0.0}
    _, report = train_here(photos, tmp_path / "run", **options)
    printed = capsys.readouterr().out
    assert "An epoch has 4 steps" in printed and re.findall(r"^step (\d+/\d+)", printed, re.MULTILINE) == [
        "1/8", "2/8", "3/8", "4/6", "5/6", "6/6",
    ]  # fmt: skip
    rates = [entry["learning_rate"] for entry in report["history"] if "loss" in entry]
    expected = [0.5e-3 * (1 + math.cos(math.pi * step / total)) for step, total in enumerate((8, 8, 8, 6, 6, 6))]
    assert rates == pytest.approx(expected, rel=1e-6)
    # A run that resumes has the same schedule.
    first = tmp_path / "first"
    train_here(photos, first, **options | {"epochs": 1})
    _, resumed = train_here(photos, first, **options, resume_from_checkpoint="latest")
    assert [entry["learning_rate"] for entry in resumed["history"] if "loss" in entry][3:] == pytest.approx(rates[3:])
