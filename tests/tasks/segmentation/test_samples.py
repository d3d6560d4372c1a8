"""
Decoding images and masks: labels are reduced once, and every unusable pair is skipped by name.

    pytest tests/tasks/segmentation/test_samples.py
"""

import numpy as np
import pytest
import torch
from PIL import Image

from pvt_hf.data.batches import BatchStream, make_loader
from pvt_hf.data.samples import BadSample
from pvt_hf.data.streams import StreamError
from pvt_hf.tasks.segmentation.samples import (
    SegmentationEvaluationSample,
    SegmentationSample,
    collate_lists,
    decode_labels,
)
from pvt_hf.tasks.segmentation.streams import open_segmentation_stream

from ...support.segmentation_files import CLASSES, encoded, mask, picture_of, whole, write_pair


def test_labels_are_reduced_once_and_255_stays():
    raw = np.array([[0, 1, 2, 150], [255, 149, 0, 3]], dtype=np.uint8)
    value = {"bytes": encoded(raw), "path": None}
    assert decode_labels(value, 150, True).tolist() == [[255, 0, 1, 149], [255, 148, 255, 2]]
    assert decode_labels(value, 151, False).tolist() == raw.tolist()
    for count, reduce_labels, words in (
        (149, True, r"labels 150 are not among the 149 classes, 1 to 149"),
        (149, False, r"labels 149, 150 are not among the 149 classes, 0 to 148"),
    ):
        with pytest.raises(BadSample, match=words):
            decode_labels(value, count, reduce_labels)
    wide = {"bytes": encoded(np.array([[0, 300]], dtype=np.uint16)), "path": None}
    for reduce_labels in (False, True):
        with pytest.raises(BadSample, match="300"):
            decode_labels(wide, 150, reduce_labels)


def test_values_of_the_classes():
    rng = np.random.default_rng(0)
    for values in ((0, 255), (255, 0), (10, 300, 2, 60_000)):
        classes = rng.integers(0, len(values), (36, 40))
        raw = np.array(values, dtype=np.uint16)[classes]
        value = {"bytes": encoded(raw.astype(np.uint8) if max(values) < 256 else raw), "path": None}
        assert np.array_equal(decode_labels(value, len(values), False, values), classes)
    value = {"bytes": encoded(np.array([[7, 128, 255]], dtype=np.uint8)), "path": None}
    assert decode_labels(value, 2, False, (128, 7)).tolist() == [[1, 0, 255]]
    with pytest.raises(BadSample, match=r"labels 128 are not among the 2 classes, 7, 255 \(.*mask_values\)"):
        decode_labels(value, 2, False, (7, 255))


def test_values_of_the_classes_that_do_not_fit(tmp_path):
    write_pair(tmp_path / "images", tmp_path / "masks", "a", 0)
    stream = open_segmentation_stream(str(tmp_path))
    with pytest.raises(ValueError, match=r"mask_values has 2 values, '0', '255', for 3 classes, 'sky', 'tree', 'road'"):
        SegmentationSample(stream, whole, CLASSES, mask_values=(0, 255))
    with pytest.raises(ValueError, match="reduce_labels and mask_values"):
        SegmentationSample(stream, whole, CLASSES, reduce_labels=True, mask_values=(0, 1, 255))


def test_palette_masks_are_indices(tmp_path):
    palette = Image.new("P", (40, 36))
    palette.putdata(mask(1).flatten().tolist())
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(tmp_path / "mask.png")
    value = {"bytes": None, "path": str(tmp_path / "mask.png")}
    assert np.array_equal(decode_labels(value, 3, False), mask(1))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    root = tmp_path_factory.mktemp("damaged")
    images, masks = root / "images", root / "masks"
    for seed in range(20):
        write_pair(images, masks, f"good_{seed:02d}", seed)
    for seed, name in enumerate(
        ("no_mask", "size", "range", "cut_image", "cut_mask", "empty_mask", "colour", "no_image"), start=30
    ):
        write_pair(images, masks, name, seed)
    (masks / "no_mask.png").unlink()
    (images / "no_image.jpg").unlink()
    (masks / "size.png").write_bytes(encoded(mask(0, 40, 36)))
    wrong = mask(0)
    wrong[3, 4] = 77
    (masks / "range.png").write_bytes(encoded(wrong))
    for file in (images / "cut_image.jpg", masks / "cut_mask.png"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    (masks / "empty_mask.png").write_bytes(b"")
    (masks / "colour.png").write_bytes(encoded(picture_of(mask(0))))
    return root


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unusable_pairs_are_skipped_by_name_and_counted(damaged, num_workers):
    stream = open_segmentation_stream(str(damaged))
    sample = SegmentationSample(stream, whole, CLASSES)
    batches = list(make_loader(BatchStream(stream, sample, 4, max_bad_share=0.1), num_workers))
    names = [name.rpartition("/")[2] for batch in batches for name in batch.get("sample_ids", [])]
    assert sorted(names) == [f"good_{seed:02d}.jpg" for seed in range(20)]
    reasons = {name.rpartition("/")[2]: reason for batch in batches for name, reason in batch["skipped"]}
    words = {
        "no_mask.jpg": "mask is missing",
        "size.jpg": "image has 36x40 pixels (height x width) and its mask 40x36",
        "range.jpg": "labels 77 are not among the 3 classes, 0 to 2",
        "cut_image.jpg": "Error",
        "cut_mask.jpg": "mask: ",
        "empty_mask.jpg": "mask: ",
        "colour.jpg": "one class index per pixel",
    }
    assert reasons.keys() == words.keys() and stream.num_samples == 27
    for name, word in words.items():
        assert word in reasons[name], reasons[name]
    with pytest.raises(StreamError, match="cannot be used"):
        list(BatchStream(stream, sample, 4, max_bad_share=0.01))


def test_evaluation_samples_keep_their_size_and_batches_are_lists(tmp_path):
    sizes = [(36, 40), (50, 33), (32, 64), (36, 40), (41, 41)]
    for seed, (height, width) in enumerate(sizes):
        write_pair(tmp_path / "images", tmp_path / "masks", str(seed), seed)
        (tmp_path / "images" / f"{seed}.jpg").write_bytes(encoded(picture_of(mask(seed, height, width)), "JPEG"))
        (tmp_path / "masks" / f"{seed}.png").write_bytes(encoded(mask(seed, height, width)))

    def views(image):
        return [torch.zeros(3, image.height, image.width), torch.zeros(3, image.height // 2, image.width // 2)]

    stream = open_segmentation_stream(str(tmp_path))
    sample = SegmentationEvaluationSample(stream, views, CLASSES)

    def loader():
        return make_loader(BatchStream(stream, sample, 2, collate=collate_lists), 0)

    whole_run, running, states = [], loader(), []
    for batch in running:
        whole_run.append(batch)
        states.append(running.state_dict())
    assert [len(batch["views"]) for batch in whole_run] == [2, 2, 1]
    assert [tuple(labels.shape) for batch in whole_run for labels in batch["labels"]] == sizes
    for batch in whole_run:
        for seen, labels in zip(batch["views"], batch["labels"]):
            height, width = labels.shape
            assert [tuple(view.shape) for view in seen] == [(3, height, width), (3, height // 2, width // 2)]
    resumed = loader()
    resumed.load_state_dict(states[0])
    assert [batch["sample_ids"] for batch in resumed] == [batch["sample_ids"] for batch in whole_run[1:]]
