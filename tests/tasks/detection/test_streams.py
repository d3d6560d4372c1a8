"""
Opening images with objects, from real files made on the spot: every layout gives the objects that pycocotools reads,
and what does not fit is an error that says what was expected.

    pytest tests/tasks/detection/test_streams.py
"""

import copy
import io
import json
import tarfile
import tracemalloc

import datasets
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from pvt_hf.data import digits
from pvt_hf.data.fingerprint import stream_fingerprint
from pvt_hf.tasks.classification.streams import open_classification_stream
from pvt_hf.tasks.detection.samples import (
    DetectionSample,
)
from pvt_hf.tasks.detection.streams import open_detection_stream

from ...support.detection_files import (
    CATEGORIES,
    CLASS_NAMES,
    SIZES,
    batches_of,
    boxes_xywh,
    encoded,
    noise,
    random_objects,
    read,
    whole,
    write_coco,
)


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
    with pytest.raises(FileNotFoundError, match="'test'; it has instances_train2017.json, instances_val2017.json"):
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
    assert (stream.num_samples, stream.dataset.num_shards, stream.columns["objects"]) == (5, 3, "objects")
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
    stream = open_detection_stream("someone/things", "validation")
    assert calls == [("someone/things", "validation", True, {})]
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
    assert stream.columns["objects"] == "json"
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
    with pytest.raises(FileNotFoundError, match=r"instances_SPLIT\.json.*It contains: nothing"):
        open_detection_stream(str(tmp_path))
    for content, words in (("[1, 2", "JSONDecodeError"), ('{"images": []}', "it has no annotations")):
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
    with pytest.raises(ValueError, match="no objects column: name it with objects_column"):
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
