"""
Repeated augmentation in one process: each sample several times, augmented differently.

    pytest tests/data/test_repeats.py
"""

import pytest
import torch

from pvt_hf.data.batches import BatchStream, make_loader
from pvt_hf.tasks.classification.samples import ClassificationSample
from pvt_hf.tasks.classification.streams import open_classification_stream


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
