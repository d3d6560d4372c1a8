"""
Decoding images and objects: every unusable example is skipped by name, classes are matched by name, and batches are
padded.

    pytest tests/tasks/detection/test_samples.py
"""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from pvt_hf.data.batches import BatchStream, make_loader
from pvt_hf.data.samples import BadSample
from pvt_hf.data.streams import StreamError
from pvt_hf.tasks.detection.samples import (
    DetectionEvaluationSample,
    DetectionSample,
    aspect_group,
    collate_detection,
    decode_as_annotated,
)
from pvt_hf.tasks.detection.streams import open_detection_stream

from ...support.detection_files import (
    CLASS_NAMES,
    SIZES,
    batches_of,
    boxes_xywh,
    encoded,
    noise,
    random_objects,
    read,
    to_pixels,
    whole,
    write_coco,
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    write_coco(root / "annotations.json", root / "images", SIZES)
    return root


def example_of(stream, **change):
    """The first example of a stream, changed."""
    example = next(iter(stream.dataset))
    objects = {**example["objects"], **change.pop("objects", {})}
    return {**example, "objects": objects, **change}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unusable_examples_are_skipped_by_name_and_counted(num_workers, tmp_path):
    good = {"bbox": [2, 3, 20, 15], "category_id": 3, "segmentation": [[2, 3, 22, 3, 22, 18]]}
    bad = {
        "negative": ({"bbox": [2, 3, -20, 15]}, "no negative sides"),
        "nan": ({"bbox": [2, 3, float("nan"), 15]}, "nan"),
        "class": ({"category_id": 2}, "category 2, which is not among"),
        "polygon": ({"segmentation": [[1, 2, 3]]}, "polygon"),
        "no_mask": (
            {"segmentation": []},
            "object 0: no 'segmentation', which masks need (--no_masks",
        ),
        "rle": ({"segmentation": {"size": [40, 36], "counts": [1440]}}, "object 0: run lengths of size [40, 36]"),
        "missing": ({}, "FileNotFoundError"),
        "cut": ({}, "Error"),
        "size": ({}, "has 20x20 pixels (height x width), but 36x40 according to its annotations"),
    }
    names = [*(f"good_{index:02d}" for index in range(20)), *bad]
    objects = {name: [{**good, **bad.get(name, ({},))[0]}] for name in names}
    content = write_coco(
        tmp_path / "annotations.json", tmp_path / "images", dict.fromkeys(names, (36, 40)), objects=objects
    )
    (tmp_path / "images" / "missing").unlink()
    (tmp_path / "images" / "cut").write_bytes((tmp_path / "images" / "cut").read_bytes()[:2000])
    (tmp_path / "images" / "size").write_bytes(encoded(noise(0, 20, 20)))
    ids = {image["file_name"]: str(image["id"]) for image in content["images"]}
    stream = open_detection_stream(str(tmp_path))
    batches = list(make_loader(batches_of(stream, 4, with_masks=True, max_bad_share=0.1), num_workers))
    assert sorted(name for batch in batches for name in batch.get("sample_ids", [])) == sorted(
        ids[f"good_{index:02d}"] for index in range(20)
    )
    reasons = {name: reason for batch in batches for name, reason in batch["skipped"]}
    assert reasons.keys() == {ids[name] for name in bad}
    for name, (_, word) in bad.items():
        assert word in reasons[ids[name]], reasons[ids[name]]
    with pytest.raises(StreamError, match="cannot be used"):
        list(batches_of(stream, 4, with_masks=True, max_bad_share=0.01))


def test_an_object_without_pixels_is_left_out_where_masks_are_learnt(coco):
    stream = open_detection_stream(str(coco))
    objects = {
        "bbox": [[1, 1, 5, 5], [2, 2, 9, 9]],
        "category": [1, 90],
        "area": [None, None],
        "iscrowd": [0, 0],
        "segmentation": ["[[1, 1, 6, 6]]", "[[2, 2, 11, 2, 11, 11]]"],
    }
    example = example_of(stream, objects=objects)
    assert DetectionSample(stream, whole)(example)["labels"]["class_labels"].tolist() == [0, 2]
    labels = DetectionSample(stream, whole, with_masks=True)(example)["labels"]
    assert labels["class_labels"].tolist() == [2] and labels["masks"].shape == (1, 36, 40)


def test_a_thousand_objects_and_a_long_image(tmp_path):
    objects = {"long.png": random_objects(0, 33, 2000, 1000)}
    write_coco(tmp_path / "annotations.json", tmp_path / "images", {"long.png": (33, 2000)}, objects=objects)
    (_, labels), *rest = read(open_detection_stream(str(tmp_path)), with_masks=True).values()
    assert not rest and labels["boxes"].shape == (999, 4) and labels["masks"].shape == (999, 64, 2016)
    np.testing.assert_allclose(
        boxes_xywh(labels), [annotation["bbox"] for annotation in objects["long.png"][1:]], atol=1e-3
    )
    # A rectangle's mask fills its box.
    assert labels["masks"].sum((1, 2)).tolist() == [annotation["area"] for annotation in objects["long.png"][1:]]


def test_classes_are_matched_by_name(coco):
    stream = open_detection_stream(str(coco))
    own = {name: labels["class_labels"] for name, (_, labels) in read(stream).items()}
    other_names = ("toothbrush", "dog", "person", "car")
    other = read(stream, class_names=other_names)
    for name, labels in own.items():
        assert [other_names[label] for label in other[name][1]["class_labels"]] == [CLASS_NAMES[n] for n in labels]
    assert DetectionSample(stream, whole, other_names).category_ids == {0: 90, 2: 1, 3: 3}
    assert DetectionSample(stream, whole).category_ids == {0: 1, 1: 3, 2: 90}
    with pytest.raises(ValueError, match=r"None of the classes of .*person, car.* is among the 2 class_names \(x, y"):
        DetectionSample(stream, whole, ("x", "y"))
    with pytest.raises(BadSample, match="category 90, which is not among"):
        DetectionSample(stream, whole, ("car",))(
            example_of(
                stream,
                objects={"bbox": [[1] * 4], "category": [90], "iscrowd": [0], "area": [1], "segmentation": [None]},
            )
        )


def test_exif_orientation_follows_the_annotations():
    """COCO annotates the pixels as they are stored; a tool that annotates upright images says so by the size."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    stored = noise(0, 20, 40)
    upright = np.rot90(stored, -1)
    value = {"bytes": encoded(stored, exif=exif), "path": None}
    for size, expected in (((None, None), stored), ((20, 40), stored), ((40, 20), upright), ((40, None), upright)):
        image = decode_as_annotated(value, *size)
        assert np.array_equal(np.array(image), expected), size
    with pytest.raises(BadSample, match="the image has 20x40 pixels .height x width., but 21x40"):
        decode_as_annotated(value, 21, 40)
    transparent = np.dstack([stored, np.full((20, 40), 255, dtype=np.uint8)])
    value = {"bytes": encoded(transparent, exif=exif), "path": None}
    assert np.array_equal(np.array(decode_as_annotated(value)), stored)
    for value, words in ((None, "missing"), ({"bytes": b"no image", "path": None}, "repair or remove it")):
        with pytest.raises(BadSample, match=words):
            decode_as_annotated(value)


def test_evaluation_samples_have_every_object_as_annotated(tmp_path):
    outside = {"bbox": [-4.5, 30, 100, 100], "category_id": 90, "segmentation": [[0, 30, 40, 30, 40, 36]]}
    objects = {"a.png": [*random_objects(3, 36, 40, 4), outside], "b.png": []}
    write_coco(tmp_path / "annotations.json", tmp_path / "images", dict.fromkeys(objects, (36, 40)), objects=objects)
    stream = open_detection_stream(str(tmp_path))
    sample = DetectionEvaluationSample(stream, to_pixels, with_masks=True)
    first, second = BatchStream(stream, sample, 1, collate=collate_detection)
    assert first["pixel_values"].shape == (1, 3, 64, 64) and first["orig_size"] == [(36, 40)]
    (target,) = first["target"]
    reference = COCO(str(tmp_path / "annotations.json"))
    truth = reference.loadAnns(reference.getAnnIds(imgIds=target["image_id"]))
    assert len(target["annotations"]) == len(truth) == 5
    for found, expected in zip(target["annotations"], truth):
        assert found["bbox"] == expected["bbox"] and found["iscrowd"] == expected.get("iscrowd", 0)
        assert sample.category_ids[found["category_id"]] == expected["category_id"]
        assert found["area"] == expected.get("area", 100 * 100)
        assert found["segmentation"] == {
            "size": [36, 40],
            "counts": reference.annToRLE(expected)["counts"].decode(),
        }
    assert second["target"] == [{"image_id": 107, "annotations": []}]
    without = DetectionEvaluationSample(stream, to_pixels)(next(iter(stream.dataset)))
    assert "segmentation" not in without["target"]["annotations"][0]


def test_collating_pads_at_the_right_and_below():
    sizes, samples = [(40, 70), (33, 20)], []
    for index, size in enumerate(sizes):
        labels = {"class_labels": torch.arange(index + 1), "masks": torch.ones(index + 1, *size, dtype=torch.uint8)}
        samples.append({"pixel_values": torch.full((3, *size), index + 5.0), "labels": labels})
    batch = collate_detection(samples)
    assert batch["pixel_values"].shape == (2, 3, 64, 96) and batch["pixel_mask"].dtype == torch.int64
    for index, (height, width) in enumerate(sizes):
        expected = torch.zeros(64, 96)
        expected[:height, :width] = 1
        assert torch.equal(batch["pixel_mask"][index], expected.long())
        assert torch.equal(batch["pixel_values"][index], (expected * (index + 5)).expand(3, -1, -1))
        assert torch.equal(batch["labels"][index]["masks"], expected.byte().expand(index + 1, -1, -1))
    assert samples[1]["labels"]["masks"].shape == (2, 33, 20), "samples are left as they are"
    assert collate_detection(samples, size_divisor=1)["pixel_mask"].shape == (2, 40, 70)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """61 images, a third of them high; two are unusable."""
    root = tmp_path_factory.mktemp("mixed")
    sizes = {f"{index:02d}.png": (48, 32) if index % 3 == 0 else (32, 48) for index in range(61)}
    write_coco(root / "annotations.json", root / "images", sizes, counts=[2] * 61)
    for index in (7, 33):
        (root / "images" / f"{index:02d}.png").write_bytes(b"damaged")
    return root


def grouped(stream, batch_size=4, **settings):
    group = partial(aspect_group, stream)
    options = {"shuffle_window": 24, "seed": 1, "max_bad_share": 0.1, "group": group, **settings}
    return batches_of(stream, batch_size, **options)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_processes_and_workers_share_every_image_once(world_size, num_workers, mixed):
    stream = open_detection_stream(str(mixed))
    for make in (grouped, partial(grouped, group=None)):
        seen = []
        for rank in range(world_size):
            for batch in make_loader(make(stream, rank=rank, world_size=world_size), num_workers):
                seen += batch.get("sample_ids", []) + [name for name, _ in batch["skipped"]]
        assert sorted(map(int, seen)) == [100 + 7 * index for index in range(61)]


def is_mixed(batch):
    """The padding of a batch of one shape is that to multiples of 32 alone."""
    return len({tuple(labels["size"].tolist()) for labels in batch["labels"]}) > 1


@pytest.mark.parametrize("with_sizes", [True, False])
def test_batches_are_of_one_group(with_sizes, mixed):
    """But for one that the rests of a window make, and for those behind an unusable image up to the window's end."""
    stream = open_detection_stream(str(mixed))
    if not with_sizes:  # then they are read from the images' headers
        stream = dataclasses.replace(stream, dataset=stream.dataset.remove_columns(["width", "height"]))
    order, counts = [], []
    for make in (grouped, partial(grouped, group=None)):
        batches = [batch for batch in make(stream) if "sample_ids" in batch]
        counts.append((len(batches), sum(map(is_mixed, batches))))
        order.append([name for batch in batches for name in batch["sample_ids"]])
    assert sorted(order[0]) == sorted(order[1]) and order[0] != order[1]
    assert counts[0][0] == counts[1][0] == 15
    assert counts[0][1] < 8 < counts[1][1], counts
    shapes = [
        is_high for batch in grouped(stream) if "labels" in batch for is_high in [batch["labels"][0]["size"][0] > 32]
    ]
    assert 2 < sum(shapes) < 8 and shapes != sorted(shapes) and shapes != sorted(shapes, reverse=True)
