"""
COCO's annotations as tools write them: ids and numbers of any type, names from other machines, duplicates. Each file is
a changed copy of one whose objects are known.

    pytest tests/tasks/detection/test_coco_file.py
"""

import copy
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pvt_hf.data import log
from pvt_hf.metrics.coco_ap import coco_results
from pvt_hf.tasks.detection.evaluation import DetectionEvaluation, reference
from pvt_hf.tasks.detection.image_places import plain_name
from pvt_hf.tasks.detection.samples import DetectionEvaluationSample, aspect_group
from pvt_hf.tasks.detection.streams import open_detection_stream

from ...support.detection_files import CLASS_NAMES, SIZES, boxes_xywh, encoded, noise, read, to_pixels, write_coco


BOX = [4.0, 6.0, 12.0, 9.0]
OBJECT = {"bbox": BOX, "category_id": 3, "segmentation": [[4, 6, 16, 6, 16, 15, 4, 15]], "area": 108.0, "iscrowd": 0}


@pytest.fixture
def source(tmp_path):
    """Writes a data set of five images, with one object each, after `change(content)`. Returns its folder."""

    def write(change=lambda content: None):
        objects = {name: [OBJECT] for name in SIZES}
        content = write_coco(tmp_path / "annotations.json", tmp_path / "images", SIZES, objects=objects)
        content = copy.deepcopy(content)
        change(content)
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        return str(tmp_path)

    return write


@pytest.fixture
def warned(monkeypatch):
    """The warnings that are logged."""
    lines = []
    monkeypatch.setattr(log.logger, "warning_once", lines.append, raising=False)
    return lines


def each(part, **values):
    """A change of fields of all entries; a value may be a function of the old one, REMOVED removes the field."""

    def change(content):
        for entry in content[part]:
            for name, value in values.items():
                new = value(entry.get(name)) if callable(value) else value
                entry.pop(name, None)
                if new is not REMOVED:
                    entry[name] = new

    return change


REMOVED = object()


def both(*changes):
    return lambda content: [change(content) for change in changes]


def assert_usual(found, ids=None):
    """All five images with their one object, as written."""
    assert len(found) == 5 and (ids is None or set(found) == set(ids))
    for _, labels in found.values():
        assert labels["class_labels"].tolist() == [CLASS_NAMES.index("car")]
        np.testing.assert_allclose(boxes_xywh(labels), [BOX], atol=2e-5)  # float32 of shares of at most 64 pixels


TEXT_IDS = both(each("images", id="img_{}".format), each("annotations", image_id="img_{}".format))


@pytest.mark.parametrize(
    "change",
    [
        each("annotations", image_id=str),
        each("images", id=str),
        each("images", id=float),
        both(each("images", id=str), each("annotations", image_id=float)),
        TEXT_IDS,
        both(each("categories", id=str), each("annotations", category_id=float)),
        both(each("categories", id="c{}".format), each("annotations", category_id="c{}".format)),
        each("annotations", id="a{}".format),
        each("annotations", id=REMOVED),
        each("annotations", area=str, iscrowd=str, bbox=lambda box: [str(number) for number in box]),
        each("annotations", bbox=REMOVED),
        each("annotations", bbox=[], area=None),
        each("annotations", bbox=None, segmentation=lambda polygons: polygons[0]),
        each("annotations", bbox=None, segmentation=lambda polygons: [[str(number) for number in polygons[0]]]),
        each("images", width=-1, height=-1),
        each("images", width=REMOVED, height=None),
        each("images", width=str, height="unknown"),
        each("images", width=0, height=float),
        each("images", file_name=lambda name: name.replace("/", "\\")),
        each("images", file_name="/{}".format),
        each("images", file_name="./{}".format),
        each("images", file_name=".\\{}".format),
        each("images", file_name=r"C:\data\images\{}".format),
        each("images", file_name="/home/somebody/images/{}".format),
        each("images", file_name="https://example.org/things/{}?size=full".format),
        each("images", coco_url="http://example.org/train/other.png"),
    ],
)
def test_what_tools_write_is_read(change, source):
    assert_usual(read(open_detection_stream(source(change))))


@pytest.mark.parametrize(
    ("here", "annotated"), [("{}.PNG", "{}.png"), ("É {}.png", "e\u0301 {}.png"), ("E\u0301 {}.PNG", "é%20{}.png")]
)
def test_names_that_are_spelled_otherwise_here(here, annotated, source, tmp_path):
    def change(content):
        for image in content["images"]:
            folder, _, name = image["file_name"].rpartition("/")
            image["file_name"] = f"{folder}/{annotated.format(name.removesuffix('.png'))}".lstrip("/")

    path = source(change)
    for file in list((tmp_path / "images").rglob("*.png")):
        file.rename(file.with_name(here.format(file.stem)))
    assert len(read(open_detection_stream(path))) == len(SIZES)


def test_two_files_that_an_image_may_be(source, tmp_path):
    path = source(lambda content: content["images"][0].update(file_name="Twin.png"))
    for name in ("TWIN.png", "twin.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    files = [example["image"]["path"] for example in open_detection_stream(path).dataset]
    assert str(tmp_path / "images" / "Twin.png") in files  # neither of them


def test_url_instead_of_a_file_name(source):
    def change(content):
        for image in content["images"]:
            image["coco_url"] = "http://example.org/train%202017/" + image.pop("file_name")

    assert_usual(read(open_detection_stream(source(change))))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a/b.png", "a/b.png"),
        ("./a//b.png", "a/b.png"),
        ("a\\b.png", "a/b.png"),
        ("C:\\a\\b.png", "/a/b.png"),
        ("../b.png", "../b.png"),
        ("s3://bucket/a%20b/c.png?x=1#y", "a b/c.png"),
        ("file://server/a/b.png", "a/b.png"),
    ],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


def test_images_of_two_folders_are_not_mixed_up(source, tmp_path):
    path = source(lambda content: content["images"][0].update(file_name="x/a.png"))
    with pytest.raises(ValueError, match=r"x/a\.png and a\.png would both be the file .*images/a\.png"):
        open_detection_stream(path)


def test_absolute_paths_that_exist(source, tmp_path):
    path = source(each("images", file_name=lambda name: str(tmp_path / "elsewhere" / name)))
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert_usual(read(open_detection_stream(path)))


def test_run_lengths_without_a_box(source, tmp_path):
    counts = [6 * 40 + 4, 9, *([40 - 9, 9] * 11), 40 * 40 - 6 * 40 - 4 - 12 * 40 + 31]
    mask = {"size": [40, 40], "counts": counts}  # down the columns: rows 4 to 12 of columns 6 to 17

    def change(content):
        del content["images"][1:]
        content["images"][0].update(file_name="square.png", width=40, height=40)
        content["annotations"] = [{**OBJECT, "image_id": 100, "bbox": None, "segmentation": mask}]

    path = source(change)
    (tmp_path / "images" / "square.png").write_bytes(encoded(noise(0, 40, 40)))
    ((_, labels),) = read(open_detection_stream(path), with_masks=True).values()
    np.testing.assert_allclose(boxes_xywh(labels), [[6, 4, 12, 9]], atol=2e-5)
    rows, columns = labels["masks"][0].numpy().nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 12, 6, 17)


def again(part, index, **fields):
    """Adds a copy of an entry."""
    return lambda content: content[part].append({**content[part][index], **fields})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (again("images", 0, file_name="d.png"), r"two images, b\.png and d\.png, have the same id 100, .* 1 id\(s\)"),
        (again("images", 0, id="100", file_name="d.png"), r"two images, b\.png and d\.png, have the same id 100"),
        (again("annotations", 0, image_id=107), r"two objects, in b\.png and a\.png, have the same annotation id 1"),
        (again("annotations", 0, id="1"), r"two objects, in b\.png and b\.png, have the same annotation id 1"),
        (again("categories", 0, id=7), "categories 90 and 7 have the same name 'toothbrush'"),
        (again("categories", 0, name="brush"), "'toothbrush' and 'brush' have the same id 90"),
        (each("images", id=2**70), r"image b\.png: id: .* more than 64 bits"),
        (each("annotations", image_id=2**70), "annotation 1: image_id: .* more than 64 bits"),
        (each("annotations", id=-(2**64)), r"annotation .* of b\.png: id: .* more than 64 bits"),
        (each("annotations", category_id=1e30), r"annotation 1 of b\.png: category_id: .* more than 64 bits"),
        (each("images", id=None), r"image b\.png: id: the id is None"),
        (each("images", id=1.5), "1.5 is not a whole number"),
        (each("annotations", image_id=[1]), "annotation 1: image_id"),
        (each("annotations", area="large"), r"annotation 1 of b\.png: area: could not convert"),
        (each("annotations", bbox="4,6,12,9"), r"annotation 1 of b\.png: bbox: .*expected \[x, y, width, height\]"),
        (each("annotations", iscrowd={}), "iscrowd"),
        (each("images", file_name=REMOVED), "has no file_name or coco_url"),
        (each("categories", name=REMOVED), "has no name"),
        (lambda content: content.update(images={}), "wrong images"),
        (lambda content: content.update(annotations=[7]), "wrong annotations"),
        (lambda content: content.pop("categories"), "it has no categories"),
        (lambda content: content.update(categories=[]), "the list of categories is empty, but there are annotations"),
    ],
)
def test_what_cannot_be_meant_is_named_before_training(change, words, source):
    with pytest.raises(ValueError, match=words) as error:
        open_detection_stream(source(change))
    assert "annotations.json" in str(error.value)


def test_numbers_in_text_that_are_long_stay_text(source):
    longer = ("{}" + "0" * 40).format
    ids = both(each("images", id=longer), each("annotations", image_id=longer))
    assert_usual(read(open_detection_stream(source(ids))), [f"{own}{'0' * 40}" for own in (100, 107, 114, 121, 128)])


def test_ids_that_differ_stay_different(source):
    """ "007" is not 7: the images of one have no objects of the other."""
    path = source(lambda content: content["images"][0].update(id="0107"))
    stream = open_detection_stream(path)
    counts = {row["image_id"]: len(row["objects"]["bbox"]) for row in stream.dataset}
    assert counts == {"0107": 0, "107": 1, "114": 1, "121": 1, "128": 1}


def test_an_object_without_a_box_or_a_polygon_makes_its_image_unusable(source):
    def change(content):
        del content["annotations"][0]["bbox"], content["annotations"][0]["segmentation"]

    found = read(open_detection_stream(source(change)), max_bad_share=0.5)
    assert len(found) == 4 and "100" not in found


def test_classes_without_objects(source, warned):
    change = both(
        lambda content: content["categories"].append({"id": 0, "name": "things", "supercategory": "none"}),
        lambda content: content["annotations"][0].update(category_id=90),
    )
    path = source(change)
    stream = open_detection_stream(path)
    assert stream.class_names == ("things", *CLASS_NAMES) and stream.category_ids == (0, 1, 3, 90)
    (line,) = warned
    assert "2 of 4 classes have no objects (things, person): kept" in line and "--no_keep_unused_classes" in line
    stream = open_detection_stream(path, keep_unused_classes=False)
    assert stream.class_names == ("car", "toothbrush") and stream.category_ids == (3, 90)
    assert "2 of 4 classes have no objects and are left out (things, person)" in warned[1]
    labels = {name: labels["class_labels"].tolist() for name, (_, labels) in read(stream).items()}
    assert labels == {"100": [1], "107": [0], "114": [0], "121": [0], "128": [0]}
    nothing = source(lambda content: content["annotations"].clear())
    with pytest.raises(ValueError, match="none of the 3 classes has an object"):
        open_detection_stream(nothing, keep_unused_classes=False)
    with pytest.raises(ValueError, match="COCO's and YOLO's layouts only"):
        open_detection_stream("digit-scenes", keep_unused_classes=False)


def test_what_is_left_out_is_said(source, warned):
    change = both(
        lambda content: content["annotations"].append({**OBJECT, "id": 50, "image_id": 5}),
        lambda content: content["annotations"].append({**OBJECT, "id": 51, "image_id": 100, "category_id": 17}),
        lambda content: content["images"][2].update(file_name="nowhere/c.png"),
    )
    open_detection_stream(source(change))
    text = "\n".join(warned)
    assert "1 annotation(s) left out" in text and "not among the categories: 17" in text
    assert "the folders of 1 image(s) were not found, e.g. nowhere/c.png" in text


def test_a_file_of_several_images_is_named(source, warned):
    open_detection_stream(source(lambda content: content["images"][0].update(file_name=".\\a.png")))
    assert any("1 file(s) belong to several images" in line and "a.png" in line for line in warned)


class Perfect:
    """A processor that turns "outputs", the references, into detections."""

    def post_process_object_detection(self, outputs, threshold, target_sizes):
        found = []
        for target in outputs:
            boxes = torch.tensor(target["boxes_xywh"]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = torch.tensor(target["labels"], dtype=torch.int64)
            found.append({"scores": torch.full((len(labels),), 0.9), "labels": labels, "boxes": boxes})
        return found


@pytest.mark.parametrize(
    "change",
    [
        TEXT_IDS,
        both(each("images", id=str), each("annotations", image_id=str)),
        both(TEXT_IDS, each("categories", id="c{}".format), each("annotations", category_id="c{}".format)),
        lambda content: None,
    ],
)
def test_evaluation_and_results_have_the_ids_of_the_file(change, source, tmp_path):
    """pycocotools takes the results for the file, and finds every object."""
    path = source(change)
    stream = open_detection_stream(path)
    sample = DetectionEvaluationSample(stream, to_pixels)
    evaluation = DetectionEvaluation(Perfect(), "retinanet", 3, masks=False)
    targets = [sample(example) for example in stream.dataset]
    batch = {"pixel_values": None, "pixel_mask": None, "target": [made["target"] for made in targets]}
    references = [reference(made["target"]) for made in targets]
    evaluation.add(lambda **inputs: references, {**batch, "orig_size": [made["orig_size"] for made in targets]})
    images = evaluation.merge([evaluation.state()]).images
    results = coco_results(images, sample.category_ids)
    (tmp_path / "results.json").write_text(json.dumps(results))
    coco = COCO(str(tmp_path / "annotations.json"))
    loaded = coco.loadRes(str(tmp_path / "results.json"))
    assert {(entry["image_id"], entry["category_id"]) for entry in loaded.dataset["annotations"]} == {
        (entry["image_id"], entry["category_id"]) for entry in coco.dataset["annotations"]
    }
    assert evaluation.compute([images])["ap"] == 1


def test_objects_to_ignore_count_as_in_pycocotools(source, warned):
    path = source(each("annotations", ignore=1))
    assert_usual(read(open_detection_stream(path)))
    assert [line for line in warned if "5 object(s) have a field `ignore`" in line and "set iscrowd to 1" in line]
    coco = COCO(f"{path}/annotations.json")
    found = [{**entry, "score": 1.0} for entry in coco.dataset["annotations"][:-1]]
    evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"]
    assert recall[recall > -1].max() == 0.8  # of five objects, one is missed


def test_results_leave_out_classes_that_the_data_lack():
    record = {"labels": np.array([0, 1]), "boxes_xywh": np.ones((2, 4)), "scores": np.array([0.5, 0.6])}
    results = coco_results({"a": {"prediction": record, "reference": {}}}, {1: "c7"})
    assert results == [{"image_id": "a", "category_id": "c7", "bbox": [1.0] * 4, "score": 0.6}]


def test_images_are_grouped_by_their_own_size_if_it_is_not_annotated(source):
    stream = open_detection_stream(source(each("images", width=-1, height=-1)))
    wide = {row["image"]["path"].rsplit("/", 1)[1]: aspect_group(stream, row) for row in stream.dataset}
    assert wide == {"b.png": 1, "a.png": 0, "c.png": 1, "d.png": 0, "e.png": 0}
