"""
Data sets in YOLO's layout, as Ultralytics, Roboflow and labelling tools write them: each spelling gives the same boxes.

    pytest tests/tasks/detection/test_yolo_folder.py
"""

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from pvt_hf.commands.check import guess_task
from pvt_hf.data import log
from pvt_hf.data.samples import BadSample
from pvt_hf.tasks.detection.samples import DetectionEvaluationSample, DetectionSample
from pvt_hf.tasks.detection.streams import open_detection_stream

from ...support.detection_files import batches_of, boxes_xywh, encoded, noise, read, to_pixels


NAMES = ["person", "no", "12"]
SIZES = {"a.png": (40, 64), "b.jpg": (33, 50), "sub/c.png": (64, 32), "empty.png": (40, 40), "nothing.png": (41, 40)}
# Class, and the corners (left, top, right, bottom) in pixels, by image
BOXES = {"a.png": [(2, 8, 10, 40, 30)], "b.jpg": [(0, 0, 0, 50, 33), (1, 5, 6, 20, 30)], "sub/c.png": [(1, 1, 2, 3, 5)]}


def line(label, left, top, right, bottom, height, width):
    values = [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
    return " ".join([str(label), *(f"{value:.6f}" for value in values)])


def write_split(images, labels, boxes=BOXES, sizes=SIZES):
    """Images and label files. One label file is empty, and one image has none."""
    for index, (name, (height, width)) in enumerate(sizes.items()):
        for folder in (images, labels):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(encoded(noise(index, height, width), "JPEG" if name.endswith("jpg") else "PNG"))
        if name != "nothing.png":
            text = "\n".join(line(*box, height, width) for box in boxes.get(name, []))
            (labels / name).with_suffix(".txt").write_text(text)


def assert_usual(stream, boxes=BOXES):
    """The boxes of all images, and no objects in the others."""
    found = read(stream)
    assert stream.num_samples == stream.dataset.num_shards == len(found) == len(SIZES)
    for name in SIZES:
        (labels,) = (labels for own, (_, labels) in found.items() if own.endswith(name))
        expected = [[box[1], box[2], box[3] - box[1], box[4] - box[2]] for box in boxes.get(name, [])]
        assert labels["class_labels"].tolist() == [box[0] for box in boxes.get(name, [])]
        # Six decimals of at most 64 pixels, and float32
        np.testing.assert_allclose(boxes_xywh(labels), np.reshape(expected, (-1, 4)), atol=1e-4)
        assert labels["orig_size"].tolist() == list(SIZES[name])


STARTS = ("./", "data/", "", "/data/", "./")
NUMBERED = dict(enumerate(NAMES))
ULTRALYTICS = {"path": "../datasets/things", "train": "images/train", "val": "images/val", "test": None}
ROBOFLOW = {"train": "../train/images", "val": "../valid/images", "test": "../test/images", "nc": 3}


@pytest.mark.parametrize(
    ("content", "images", "labels"),
    [
        (ULTRALYTICS, "images/train", "labels/train"),
        ({**ULTRALYTICS, "path": "/somewhere/else", "train": "./images/train/"}, "images/train", "labels/train"),
        ({**ULTRALYTICS, "path": "inner"}, "inner/images/train", "inner/labels/train"),
        ({**ULTRALYTICS, "path": "."}, "images/train", "labels/train"),
        ({**ULTRALYTICS, "train": ["images/train"]}, "images/train", "labels/train"),
        ({**ULTRALYTICS, "train": "images\\train"}, "images/train", "labels/train"),
        (ROBOFLOW, "train/images", "train/labels"),
        ({**ROBOFLOW, "train": "train/images"}, "train/images", "train/labels"),
        ({**ROBOFLOW, "train": "train"}, "train/images", "train/labels"),
        ({**ROBOFLOW, "train": "data"}, "data", "data"),
        ({**ULTRALYTICS, "train": "train.txt"}, "images/train", "labels/train"),
    ],
)
@pytest.mark.parametrize("names", [NAMES, NUMBERED])
def test_data_yaml(content, images, labels, names, tmp_path):
    write_split(tmp_path / images, tmp_path / labels)
    # CVAT writes paths of a folder that is not there
    (tmp_path / "train.txt").write_text("".join(f"{start}{images}/{name}\n" for name, start in zip(SIZES, STARTS)))
    # As a tool writes it: the names unquoted
    shown = names if isinstance(names, list) else [f"{number}: {name}" for number, name in names.items()]
    text = "names:\n" + "".join(f"  {'- ' * isinstance(names, list)}{name}\n" for name in shown)
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content) + text)
    stream = open_detection_stream(str(tmp_path))
    assert stream.class_names == tuple(NAMES) and stream.category_ids == (0, 1, 2)
    assert_usual(stream)


def test_the_yaml_file_itself(tmp_path):
    source = write_labels(tmp_path, "")
    (tmp_path / "data.yaml").rename(tmp_path / "things.yml")
    assert open_detection_stream(f"{source}/things.yml").num_samples == 2
    (tmp_path / "things.yml").write_text("a: b")
    with pytest.raises(ValueError, match=r"things\.yml does not describe a data set"):
        open_detection_stream(f"{source}/things.yml")


def test_the_other_splits(tmp_path):
    for split, count in (("train", 4), ("valid", 3)):
        write_split(tmp_path / split / "images", tmp_path / split / "labels", sizes=dict(list(SIZES.items())[:count]))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({**ROBOFLOW, "names": NAMES}))
    assert open_detection_stream(str(tmp_path)).num_samples == 4
    assert open_detection_stream(str(tmp_path), "validation").num_samples == 3
    with pytest.raises(FileNotFoundError, match=r"data\.yaml: \.\./test/images is neither a folder"):
        open_detection_stream(str(tmp_path), "test")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": NAMES, "train": "train/images", "val": ""}))
    with pytest.raises(FileNotFoundError, match="names no images for 'validation'; its splits are train"):
        open_detection_stream(str(tmp_path), "validation")


@pytest.mark.parametrize("images", ["images/train", "train/images", "images"])
@pytest.mark.parametrize("names", ["classes.txt", "obj.names", None])
def test_without_a_yaml_file(images, names, tmp_path):
    write_split(tmp_path / images, tmp_path / images.replace("images", "labels"))
    if names:
        (tmp_path / names).write_text("\n".join(NAMES) + "\n")
        (tmp_path / "notes.json").write_text('{"categories": []}')  # Label Studio's
    stream = open_detection_stream(str(tmp_path))
    assert stream.class_names == (tuple(NAMES) if names else None)
    if names:
        assert_usual(stream)
    else:
        assert len(read(stream, class_names=tuple(NAMES))) == 5


def write_labels(folder, text, name="a.png", names=NAMES, **content):
    """A data set of two images, one of them labelled with `text`. Returns its folder."""
    sizes = {"a.png": (40, 64), "other.png": (20, 20)}
    write_split(folder / "train/images", folder / "train/labels", boxes={"other.png": [(0, 1, 1, 9, 9)]}, sizes=sizes)
    (folder / "train/labels/a.txt").write_text(text)
    (folder / "data.yaml").write_text(yaml.safe_dump({"train": "train/images", "names": names, **content}))
    return str(folder)


def test_polygons_are_boxes_and_masks(tmp_path):
    corners = [(10, 10), (30, 10), (30, 20), (10, 20)]
    points = " ".join(f"{x / 64} {y / 40}" for x, y in corners)
    stream = open_detection_stream(write_labels(tmp_path, f"1 {points}\n"))
    examples = {row["image_id"].rsplit("/", 1)[1]: row for row in stream.dataset}
    assert json.loads(examples["a.png"]["objects"]["segmentation"][0]) == [[10, 10, 30, 10, 30, 20, 10, 20]]
    assert examples["other.png"]["objects"]["segmentation"] == [None]
    assert examples["other.png"]["objects"]["area"] == pytest.approx([8 * 8])
    found = read(stream, with_masks=True, max_bad_share=0.5)  # a box without a polygon has no mask
    ((name, (_, labels)),) = found.items()
    assert name == "train/images/a.png" and labels["class_labels"].tolist() == [1]
    np.testing.assert_allclose(boxes_xywh(labels), [[10, 10, 20, 10]], atol=1e-4)
    expected = np.zeros((40, 64), dtype=np.uint8)
    expected[10:20, 10:30] = 1
    assert np.array_equal(labels["masks"][0][:40, :64], expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 32 20 10 10", r"a\.txt, line 1: .*fractions of the image's width and height, from 0 to 1, not pixels"),
        ("\n0 0.5 0.5 0.2 1.2", "line 2: .*from 0 to 1"),
        ("0 0.5 -0.1 0.2 0.2", "from 0 to 1"),
        ("0 0.5 nan 0.2 0.2", "from 0 to 1"),
        ("0 0.5 0.5 -0.001 0.2", "must not be negative"),
        ("0 0.5 0.5 0.2", r"with 4 number\(s\); expected a class number and 4 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", r"with 6 number\(s\)"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", r"with 8 number\(s\)"),
        ("0.5 0.5 0.5 0.2 0.2", r"with 5 number\(s\)"),
        ("-1 0.5 0.5 0.2 0.2", "expected a class number"),
        ("3 0.5 0.5 0.2 0.2", "class 3, but only 0 to 2 have names"),
        ("person 0.5 0.5 0.2 0.2", "expected numbers"),
        ("0,0.5,0.5,0.2,0.2", "expected numbers"),
    ],
)
def test_lines_that_are_no_object(text, words, tmp_path):
    """The image is unusable, as one that cannot be decoded is, and the others are read."""
    stream = open_detection_stream(write_labels(tmp_path, text), keep_empty=False)
    makers = DetectionSample(stream, None), DetectionEvaluationSample(stream, to_pixels)
    broken, other = sorted(stream.dataset, key=lambda row: row["image_id"])
    for make in makers:
        with pytest.raises(BadSample, match=words):
            make(broken)
        assert make.count(other).usable == 1


def test_every_broken_label_file_is_named(tmp_path):
    source = write_labels(tmp_path, "0 1 1 1\n0 0.5 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1\n8 0.5 0.5 0.1 0.1")
    (tmp_path / "train/labels/other.txt").write_text("9 0.5 0.5 0.1 0.1")
    stream = open_detection_stream(source)
    (skipped,) = (batch["skipped"] for batch in batches_of(stream, 4, max_bad_share=0.5))
    reasons = dict(skipped)
    assert reasons.keys() == {"train/images/a.png", "train/images/other.png"}
    assert re.search(r"a\.txt, line 1: .* \(and 2 more line\(s\)\)", reasons["train/images/a.png"])
    assert "other.txt, line 1: class 9, but only 0 to 2" in reasons["train/images/other.png"]


def test_rounding_repeats_and_spaces_are_harmless(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(log.logger, "warning_once", lines.append, raising=False)
    text = "\ufeff 2\t0.5  0.5 1.000001 1.0\r\n\r\n2 0.5 0.5 1.000001 1.0\r\n1 0.5 0.5 0.1 0.1 "
    stream = open_detection_stream(write_labels(tmp_path, text))
    labels = read(stream)["train/images/a.png"][1]
    assert labels["class_labels"].tolist() == [2, 1]
    np.testing.assert_allclose(boxes_xywh(labels)[0], [0, 0, 64, 40], atol=1e-4)
    assert any("1 line(s) of label files left out that repeat another one" in text for text in lines)


def test_keypoints_are_not_polygons(tmp_path):
    source = write_labels(tmp_path, "1 0.5 0.5 0.25 0.5 0.1 0.1 2 0.2 0.2 2", kpt_shape=[2, 3])
    np.testing.assert_allclose(
        boxes_xywh(read(open_detection_stream(source))["train/images/a.png"][1]), [[24, 10, 16, 20]]
    )


def test_labels_mean_the_upright_image(tmp_path):
    """A photograph that is stored lying: YOLO's shares are those of the picture as it is shown."""
    source = write_labels(tmp_path, "0 0.25 0.5 0.5 1.0")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(0, 40, 64)).save(tmp_path / "train/images/a.png", exif=exif)
    ((height, width), box) = next(
        (labels["orig_size"].tolist(), boxes_xywh(labels)[0])
        for name, (_, labels) in read(open_detection_stream(source)).items()
        if name.endswith("a.png")
    )
    assert (height, width) == (64, 40)
    np.testing.assert_allclose(box, [0, 0, 20, 64], atol=1e-4)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "b", "a"], "the classes 0, 2 have the same name 'a'"),
        ("person", "names 'person'; expected a list"),
        ({"person": 0}, "expected a list of class names, or numbers with names"),
    ],
)
def test_names_that_cannot_be_meant(names, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        open_detection_stream(write_labels(tmp_path, "", names=names))


def test_numbers_of_classes(tmp_path):
    gaps = {0: "a", 2: "c", 5: "f"}
    for names, right, wrong in ((NAMES, (3,), 5), (gaps, (3, 6), 5)):
        for count in right:
            assert len(open_detection_stream(write_labels(tmp_path, "", names=names, nc=count)).class_names) == 3
        with pytest.raises(ValueError, match=r"data\.yaml: nc is 5, but 3 classes have names"):
            open_detection_stream(write_labels(tmp_path, "", names=names, nc=wrong))
    rows = open_detection_stream(write_labels(tmp_path, "1 0.5 0.5 0.1 0.1", names=gaps)).dataset
    assert any("class 1, but only 0, 2, 5 have names" in str(row["__problem__"]) for row in rows)


def test_places_that_are_not_there(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(log.logger, "warning_once", lines.append, raising=False)
    open_detection_stream(write_labels(tmp_path, "", path="."))
    assert not any("'path'" in text for text in lines)
    source = write_labels(tmp_path, "", path="../absent", val="absent/images")
    open_detection_stream(source)
    assert any(f"is not in its 'path', ../absent; {tmp_path}/train/images is read" in text for text in lines)
    with pytest.raises(FileNotFoundError, match=r"or its path, \.\./absent: correct the entry or the path\.$"):
        open_detection_stream(source, "validation")
    write_labels(tmp_path, "", path=".", val="absent/images")
    with pytest.raises(FileNotFoundError, match=rf"with their paths, in {tmp_path}: correct the entry\.$"):
        open_detection_stream(source, "validation")
    with pytest.raises(FileNotFoundError, match="Add a line 'val: FOLDER'"):
        open_detection_stream(write_labels(tmp_path, ""), "validation")


def test_label_files_without_an_image(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(log.logger, "warning_once", lines.append, raising=False)
    source = write_labels(tmp_path, "")
    (tmp_path / "train/labels/classes.txt").write_text("person")
    open_detection_stream(source)
    assert not any("left out" in text for text in lines)
    (tmp_path / "train/labels/lone.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train.txt", "names": NAMES}))
    (tmp_path / "train.txt").write_text("train/images/a.png")  # other.png is of another split
    open_detection_stream(source)
    assert any("left out 1 x label files without an image (labels/lone.txt)" in text for text in lines)


def test_classes_and_images_without_objects(tmp_path):
    source = write_labels(tmp_path, "")
    assert open_detection_stream(source).num_samples == 2
    stream = open_detection_stream(source, keep_empty=False, keep_unused_classes=False)
    assert stream.num_samples == 1 and stream.class_names == ("person",) and stream.category_ids == (0,)


def test_no_label_file_at_all(tmp_path):
    source = write_labels(tmp_path, "")
    assert guess_task(source, []) == "object-detection"
    for file in (tmp_path / "train" / "labels").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"none of the 2 images has a label file, .*train/labels/a\.txt"):
        open_detection_stream(source)
    (tmp_path / "train" / "labels").rmdir()
    # A data.yaml is no folder of classes, which these images alone would be.
    with pytest.raises(FileNotFoundError, match=r"images has a label file, and there is no folder .*train/labels for"):
        guess_task(source, [])
    (tmp_path / "data.yaml").write_text("names: [a\n\t- b")
    with pytest.raises(ValueError, match=r"data\.yaml cannot be read"):
        open_detection_stream(source)


def test_broken_images_are_skipped_as_elsewhere(tmp_path):
    source = write_labels(tmp_path, "0 0.5 0.5 0.1 0.1")
    (tmp_path / "train/images/a.png").write_bytes(b"none")
    assert set(read(open_detection_stream(source), max_bad_share=0.5)) == {"train/images/other.png"}


@pytest.mark.parametrize(
    ("corners", "area", "tolerance"),
    [
        ([(10, 10), (30, 10), (10, 30)], 200, 12),  # half of its box; pixels on the edge count or not
        # Two squares of 100 pixels that turn in different directions, joined by a line there and back
        ([(10, 10), (20, 10), (20, 20), (10, 20), (10, 10), (40, 10), (40, 20), (50, 20), (50, 10), (40, 10)], 200, 0),
    ],
)
def test_areas_are_those_of_polygons(tmp_path, corners, area, tolerance):
    points = " ".join(f"{x / 64} {y / 40}" for x, y in corners)
    stream = open_detection_stream(write_labels(tmp_path, f"1 {points}\n"))
    targets = [DetectionEvaluationSample(stream, to_pixels)(row)["target"] for row in stream.dataset]
    (found,) = next(one["annotations"] for one in targets if one["image_id"] == "train/images/a.png")
    assert abs(found["area"] - area) <= tolerance


def test_evaluation(tmp_path):
    stream = open_detection_stream(write_labels(tmp_path, "2 0.5 0.5 0.25 0.5"))
    target = next(
        made["target"]
        for made in map(DetectionEvaluationSample(stream, to_pixels), stream.dataset)
        if made["target"]["image_id"] == "train/images/a.png"
    )
    (annotation,) = target["annotations"]
    assert annotation["category_id"] == 2 and annotation["area"] == pytest.approx(16 * 20)


@pytest.mark.parametrize(
    ("images", "labels", "ending", "yaml_file"),
    [
        ("images/train", "labels/train", ".TXT", "data.yaml"),
        ("Images/Train", "labels/train", ".txt", "Data.YAML"),
        ("images/train", "LABELS/Train", ".txt", "dataset.YML"),
        ("images/train", "Labels/train", ".Txt", "data.yaml"),
    ],
)
def test_case_does_not_matter(images, labels, ending, yaml_file, tmp_path):
    write_split(tmp_path / images, tmp_path / labels)
    for file in list((tmp_path / labels).rglob("*.txt")):
        file.rename(file.with_suffix(ending))
    (tmp_path / yaml_file).write_text(yaml.safe_dump({"train": images, "names": NAMES}))
    stream = open_detection_stream(str(tmp_path))
    assert stream.class_names == tuple(NAMES)
    assert_usual(stream)


def test_the_list_of_classes_in_another_case(tmp_path):
    write_split(tmp_path / "images", tmp_path / "labels")
    (tmp_path / "Classes.txt").write_text("\n".join(NAMES))
    assert open_detection_stream(str(tmp_path)).class_names == tuple(NAMES)
