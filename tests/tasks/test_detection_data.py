"""
Streams of images and objects from real files made on the spot: every layout gives the same objects as pycocotools
reads, and every unusable example is skipped by name.

    pytest tests/tasks/test_detection_data.py
"""

import copy
import dataclasses
import io
import json
import tarfile
import tracemalloc
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from pvt_hf.data import digits
from pvt_hf.data.batches import BatchStream, StreamError, make_loader
from pvt_hf.data.fingerprint import stream_fingerprint
from pvt_hf.data.samples import BadSample
from pvt_hf.tasks.classification.streams import open_classification_stream
from pvt_hf.tasks.detection.samples import (
    DetectionEvaluationSample,
    DetectionSample,
    aspect_group,
    collate_detection,
    decode_as_annotated,
)
from pvt_hf.tasks.detection.streams import open_detection_stream

from ..support.detection_files import CATEGORIES, CLASS_NAMES, encoded, noise, random_objects, write_coco


SIZES = {"b.png": (36, 40), "a.png": (50, 33), "sub/c.png": (32, 64), "d.png": (41, 41), "e.png": (40, 36)}


def to_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def whole(image, boxes_xyxy, masks):
    return to_pixels(image), boxes_xyxy, masks


def batches_of(stream, batch_size=1, *, with_masks=False, class_names=None, **settings):
    sample = DetectionSample(stream, whole, class_names, with_masks)
    return BatchStream(stream, sample, batch_size, collate=collate_detection, **settings)


def read(stream, **settings) -> dict[str, tuple[torch.Tensor, dict]]:
    """Pixels and labels by name, of all usable examples, of batches of one."""
    return {
        batch["sample_ids"][0]: (batch["pixel_values"][0], batch["labels"][0])
        for batch in batches_of(stream, **settings)
        if "sample_ids" in batch
    }


def boxes_xywh(labels: dict) -> np.ndarray:
    """Back to COCO's boxes, in pixels of the image itself."""
    boxes = labels["boxes"].double().numpy()
    height, width = labels["size"].tolist()
    sides = boxes[:, 2:] * [width, height]
    return np.concatenate([boxes[:, :2] * [width, height] - sides / 2, sides], axis=1)


# Sources


def assert_is_coco(found, file, with_masks=True):
    """Labels equal what pycocotools reads from the file, crowds left out."""
    coco = COCO(str(file))
    assert found.keys() == {str(image_id) for image_id in coco.getImgIds()}
    seen = 0
    for name, (pixels, labels) in found.items():
        image = coco.loadImgs(int(name))[0]
        expected = coco.loadAnns(coco.getAnnIds(imgIds=int(name), iscrowd=0))
        names = [coco.loadCats(annotation["category_id"])[0]["name"] for annotation in expected]
        assert [CLASS_NAMES[label] for label in labels["class_labels"]] == names
        assert labels["boxes"].dtype == torch.float32 and labels["class_labels"].dtype == torch.int64
        bbox = np.array([annotation["bbox"] for annotation in expected]).reshape(-1, 4)
        # float32 of shares of at most 64 pixels
        np.testing.assert_allclose(boxes_xywh(labels), bbox, atol=2e-5)
        size = [image["height"], image["width"]]
        assert labels["orig_size"].tolist() == labels["size"].tolist() == size
        assert labels["image_id"].tolist() == [int(name)] and pixels.shape[0] == 3
        if with_masks:
            assert labels["masks"].dtype == torch.uint8 and len(labels["masks"]) == len(expected)
            for mask, annotation in zip(labels["masks"].numpy(), expected):
                assert np.array_equal(mask[: size[0], : size[1]], coco.annToMask(annotation))
        seen += len(expected)
    assert seen > 5


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/train.json", "images"),
        ("train/_annotations.coco.json", "train"),
        ("train/annotations.json", "train/images"),
        ("annotations.json", "images"),
        ("anything.json", "images"),
    ],
)
def test_folders_in_cocos_layouts(file, images, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    if file.startswith("annotations/"):
        (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    write_coco(tmp_path / file, tmp_path / images, SIZES)
    stream = open_detection_stream(str(tmp_path))
    assert stream.num_samples == stream.dataset.num_shards == 5
    assert (stream.class_names, stream.category_ids) == (CLASS_NAMES, (1, 3, 90))
    found = read(stream, with_masks=True)
    assert_is_coco(found, tmp_path / file)
    for index, size in enumerate(SIZES.values()):
        pixels = found[str(100 + 7 * index)][0]
        assert np.array_equal(pixels[:, : size[0], : size[1]].permute(1, 2, 0), noise(index, *size))
    with pytest.raises(FileNotFoundError, match="'validation'"):
        open_detection_stream(str(tmp_path), "validation")


def test_both_splits_of_coco(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        sizes = {f"{index:012d}.png": (40, 40) for index in range(count)}
        write_coco(tmp_path / "annotations" / f"instances_{split}2017.json", tmp_path / f"{split}2017", sizes)
    assert open_detection_stream(str(tmp_path)).num_samples == 3
    assert open_detection_stream(str(tmp_path), "validation").num_samples == 2
    with pytest.raises(FileNotFoundError, match="There is: annotations, train2017, val2017"):
        open_detection_stream(str(tmp_path), "test")


def test_annotations_are_shared_and_not_copied(tmp_path):
    """A copy of a stream, of which every epoch and worker makes one, has the same memory."""
    write_coco(tmp_path / "annotations.json", tmp_path / "images", SIZES)
    dataset = open_detection_stream(str(tmp_path)).dataset

    def address(stream):
        iterable = stream._ex_iterable
        while not hasattr(iterable, "kwargs"):
            iterable = iterable.ex_iterable
        return iterable.kwargs["table"].table.column("image_id").chunk(0).buffers()[1].address

    assert address(copy.deepcopy(dataset)) == address(dataset)


def test_polygons_are_not_held_as_lists_of_numbers(tmp_path):
    """
    Of a file of polygons, which each process reads: the text, and the polygons as texts, each once, and some more. As
    lists of Python's numbers the polygons alone would be nearly five times the file.
    """
    random = np.random.default_rng(0)
    objects = [{**random_objects(0, 40, 40, 1)[0], "segmentation": random.uniform(0, 40, (1, 60)).round(2).tolist()}]
    sizes = {f"{index}.png": (40, 40) for index in range(20)}
    file = tmp_path / "annotations.json"
    content = write_coco(file, tmp_path / "images", sizes, objects=dict.fromkeys(sizes, objects * 100))
    rows = list(open_detection_stream(str(tmp_path)).dataset.take(1))  # imports what is needed, too
    tracemalloc.start()
    open_detection_stream(str(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * file.stat().st_size, peak / file.stat().st_size
    (first, *_), polygons = rows[0]["objects"]["segmentation"], content["annotations"][0]["segmentation"]
    assert json.loads(first) == polygons


def rows_of(file, images, as_list):
    """A COCO folder as rows in the Hub's layout, labels without gaps."""
    coco = COCO(str(file))
    for image in coco.loadImgs(coco.getImgIds()):
        objects = [
            {
                "id": annotation["id"],
                "bbox": annotation["bbox"],
                "category": CLASS_NAMES.index(CATEGORIES[annotation["category_id"]]),
                "area": annotation["area"],
                "iscrowd": annotation["iscrowd"],
                "segmentation": json.dumps(annotation["segmentation"]),
            }
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        ]
        names = ("id", "bbox", "category", "area", "iscrowd", "segmentation")
        yield {
            "image": {"bytes": (images / image["file_name"]).read_bytes(), "path": image["file_name"]},
            "image_id": image["id"],
            "objects": objects if as_list else {name: [item[name] for item in objects] for name in names},
        }


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    write_coco(root / "annotations.json", root / "images", SIZES)
    return root


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_parquet_in_the_hubs_layout(as_list, named, coco, tmp_path):
    value = datasets.Value
    fields = {
        "id": value("int64"),
        "bbox": datasets.List(value("float32"), length=4),
        "category": datasets.ClassLabel(names=list(CLASS_NAMES)) if named else value("int64"),
        "area": value("float64"),
        "iscrowd": value("bool"),
        "segmentation": value("string"),
    }
    objects = datasets.List(fields) if as_list else {name: datasets.List(field) for name, field in fields.items()}
    features = datasets.Features({"image": datasets.Image(), "image_id": value("int64"), "objects": objects})
    rows = list(rows_of(coco / "annotations.json", coco / "images", as_list))
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(tmp_path / "train-00000-of-00001.parquet", batch_size=2)
    stream = open_detection_stream(str(tmp_path))
    assert (stream.num_samples, stream.dataset.num_shards, stream.objects_column) == (5, 3, "objects")
    assert stream.class_names == (CLASS_NAMES if named else None) and stream.category_ids is None
    assert_is_coco(read(stream, with_masks=True, class_names=CLASS_NAMES), coco / "annotations.json")
    if not named:
        with pytest.raises(ValueError, match="have no names: give class_names"):
            DetectionSample(stream, whole)


def test_hub_id(coco, monkeypatch):
    """What the Hub gives for an id is a streamed data set like that of the same rows."""
    calls = []

    def from_rows(source, split, streaming, **settings):
        calls.append((source, split, streaming, settings))
        rows = list(rows_of(coco / "annotations.json", coco / "images", as_list=False))
        return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", from_rows)
    stream = open_detection_stream("someone/things", "validation", revision="main")
    assert calls == [("someone/things", "validation", True, {"revision": "main"})]
    assert_is_coco(read(stream, class_names=CLASS_NAMES), coco / "annotations.json", with_masks=False)


@pytest.mark.parametrize("nested", [False, True])
def test_webdataset(nested, coco, tmp_path):
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        for row in rows_of(coco / "annotations.json", coco / "images", as_list=False):
            facts = {"image_id": row["image_id"], "objects": row["objects"]} if nested else row["objects"]
            for ending, content in (("png", row["image"]["bytes"]), ("json", json.dumps(facts).encode())):
                info = tarfile.TarInfo(f"{row['image_id']}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    stream = open_detection_stream(str(tmp_path))
    assert stream.objects_column == "json"
    found = read(stream, with_masks=True, class_names=CLASS_NAMES)
    for name, (_, labels) in found.items():
        assert nested == ("image_id" in labels)
        labels["image_id"] = torch.tensor([int(name)])
    assert_is_coco(found, coco / "annotations.json")


def test_digit_scenes_have_boxes_and_masks():
    stream = open_detection_stream("digit-scenes", "validation", image_size=48)
    assert stream.class_names == tuple("0123456789") and stream.num_samples == 400
    sample = DetectionSample(stream, whole, with_masks=True)
    expected = iter(digits.digit_scenes("test", 48, 48, num_shards=16, length=400))
    for example, scene in zip(stream.dataset.take(4), expected):
        made = sample(example)
        labels, semantic_map = made["labels"], np.array(scene["semantic_map"])
        assert np.array_equal(made["pixel_values"].permute(1, 2, 0), np.array(scene["image"]))
        drawn = np.zeros((48, 48), dtype=int)
        for label, mask, box in zip(labels["class_labels"], labels["masks"].numpy(), boxes_xywh(labels)):
            drawn += mask * (int(label) + 1)
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            tight = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            np.testing.assert_allclose(box, tight, atol=2e-5)
        assert np.array_equal(drawn, semantic_map) and len(labels["masks"]) >= 3
    large = open_detection_stream("digit-scenes", image_size=64, digit_sizes=[30, 32])
    heights = [box[3] for example in large.dataset.take(4) for box in example["objects"]["bbox"]]
    assert 20 < min(heights) <= max(heights) <= 32  # a digit is about nine tenths as tall as its size


def test_sources_that_do_not_fit(tmp_path, coco):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        open_detection_stream(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"instances_SPLIT\.json.*There is: nothing"):
        open_detection_stream(str(tmp_path))
    for content, words in (("[1, 2", "JSONDecodeError"), ('{"images": []}', "KeyError: 'categories'")):
        (tmp_path / "annotations.json").write_text(content)
        with pytest.raises(ValueError, match=f"cannot be read as COCO's annotations.*{words}"):
            open_detection_stream(str(tmp_path))
    write_coco(tmp_path / "annotations.json", tmp_path / "images", {"a.png": (40, 40)})
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "b.png")
    with pytest.raises(FileNotFoundError, match=r"None of the 1 image\(s\).*a\.png.*images"):
        open_detection_stream(str(tmp_path))
    rows = [{"image": {"bytes": encoded(noise(0, 40, 40)), "path": "0.png"}, "label": 0}]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "train.parquet")
    with pytest.raises(ValueError, match=r"no bbox in any of \['image', 'label'\].*Name it with objects_column"):
        open_detection_stream(str(tmp_path / "parquet"))
    with pytest.raises(ValueError, match="no column 'things'; it has image, image_id"):
        open_detection_stream(str(coco), objects_column="things")
    with pytest.raises(ValueError, match="no column of objects: open it with open_detection_stream"):
        DetectionSample(open_classification_stream("digits"), whole)


def test_fingerprint_sees_the_objects(coco, tmp_path):
    content = write_coco(tmp_path / "annotations.json", tmp_path / "images", SIZES)
    before = stream_fingerprint(open_detection_stream(str(tmp_path)))
    assert before == stream_fingerprint(open_detection_stream(str(coco)))
    content["annotations"][3]["bbox"][0] += 1
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert stream_fingerprint(open_detection_stream(str(tmp_path))) != before


@pytest.mark.parametrize("source", ["coco", "parquet"])
def test_images_without_objects_stay_or_are_left_out(source, tmp_path):
    crowd = {"bbox": [1, 1, 20, 20], "category_id": 1, "iscrowd": 1}
    empty = {"bbox": [5, 5, 0, 9], "category_id": 1}
    objects = {"a": [crowd], "b": [empty], "d": [crowd, {**empty, "bbox": [2, 3, 9, 9]}], "e": [{"bbox": [1, 2, 3]}]}
    write_coco(tmp_path / "annotations.json", tmp_path / "images", dict.fromkeys("abcde", (40, 40)), objects=objects)
    if source == "parquet":
        stream = open_detection_stream(str(tmp_path))
        rows = [{**row, "image": {"bytes": encoded(noise(0, 40, 40)), "path": "0.png"}} for row in stream.dataset]
        (tmp_path / "annotations.json").unlink()
        datasets.Dataset.from_list(rows, features=stream.dataset.features).to_parquet(tmp_path / "train.parquet")
    all_of_them = open_detection_stream(str(tmp_path))
    found = read(all_of_them, class_names=CLASS_NAMES, max_bad_share=0.5)
    assert {name: len(labels["class_labels"]) for name, (_, labels) in found.items()} == {
        **dict.fromkeys(("100", "107", "114"), 0),
        "121": 1,
    }
    assert found["100"][1]["boxes"].shape == (0, 4)
    some = open_detection_stream(str(tmp_path), keep_empty=False)
    assert some.num_samples == (2 if source == "coco" else None)
    batches = list(batches_of(some, class_names=CLASS_NAMES, max_bad_share=0.5))
    assert [name for batch in batches for name in batch.get("sample_ids", [])] == ["121"]
    # What cannot be judged is not left out in silence.
    assert [name for batch in batches for name, _ in batch["skipped"]] == ["128"]


# Samples


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
        "no_mask": ({"segmentation": []}, "object 0: no 'segmentation', which masks need"),
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
    for value, words in ((None, "missing"), ({"bytes": b"no image", "path": None}, "Error")):
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


# Batches


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
