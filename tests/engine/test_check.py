"""
`pvt-hf check`: counts, reasons and duplicates of data sets whose content is known, and refusals that are a training's.

    pytest tests/engine/test_check.py
"""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from pvt_hf.commands import main
from pvt_hf.commands.check import guess_task
from pvt_hf.data.streams import StreamError
from pvt_hf.engine import check
from pvt_hf.engine.check import check_data
from pvt_hf.engine.processes import make_accelerator
from pvt_hf.engine.run import open_training, train
from pvt_hf.tasks import get_task

from ..support.classification_files import make_folder, png
from ..support.detection_files import write_coco
from ..support.segmentation_files import CLASSES, encoded, mask, write_pair
from ..support.training_runs import TINY_RUN, forget_accelerate


SMALL_HEAD = {"backbone_overrides": TINY_RUN["config_overrides"], "cpu": True, "num_workers": 0, "batch_size": 2}


def settings(task, dataset, **more):
    return get_task(task).training_settings(dataset=str(dataset), output_dir=str(dataset), **more)


def checked(task, dataset, **more):
    return check_data(get_task(task), settings(task, dataset, **more))


@pytest.fixture
def photos(tmp_path):
    """12 pictures in two classes for training, 4 for validation; no two are alike."""
    make_folder(tmp_path / "train", {"cat": 6})
    make_folder(tmp_path / "train", {"dog": 6}, start=10)
    make_folder(tmp_path / "validation", {"cat": 2}, start=20)
    make_folder(tmp_path / "validation", {"dog": 2}, start=30)
    return tmp_path


CLASSIFY = {"image_size": 32, "config_overrides": TINY_RUN["config_overrides"], "num_workers": 0, "batch_size": 2}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_classes_sizes_broken_files_and_duplicates(photos, monkeypatch, num_workers):
    monkeypatch.setattr(check, "FEW_SAMPLES", 0)
    (photos / "train" / "dog" / "015.png").write_bytes(png(15)[:60])
    (photos / "train" / "dog" / "again.png").write_bytes(png(10))  # as dog/010.png
    Image.open(photos / "train" / "cat" / "001.png").save(photos / "validation" / "dog" / "leak.bmp")  # other bytes
    make_folder(photos / "test", {"cat": 1, "dog": 1}, start=40)
    Image.new("RGB", (100, 60)).save(photos / "test" / "cat" / "large.png")
    report = checked("image-classification", photos, **CLASSIFY | {"num_workers": num_workers})
    train_split, validation, test = (report["splits"][name] for name in ("train", "validation", "test"))
    assert report["complete"] and report["refusals"] == [] and json.loads(json.dumps(report)) == report
    assert (train_split["samples"], train_split["usable"], train_split["unusable"]["count"]) == (13, 12, 1)
    assert train_split["classes"] == [
        {"name": "cat", "samples": 6, "images": 6}, {"name": "dog", "samples": 6, "images": 6},
    ]  # fmt: skip
    (broken,) = train_split["unusable"]["first"]
    assert broken["sample"] == str(photos / "train" / "dog" / "015.png") and "truncated" in broken["reason"].lower()
    assert [validation["samples"], test["samples"]] == [5, 3]
    assert train_split["sizes"]["height"] == {"smallest": 36, "median": 36, "largest": 36}
    assert test["sizes"]["width"] == {"smallest": 40, "median": 40, "largest": 100}
    assert test["sizes"]["most_common"][0] == {"height": 36, "width": 40, "images": 2}
    within, between = report["duplicates"]["within train"], report["duplicates"]["between train and validation"]
    assert within["count"] == 1 and [name[-7:] for name in within["first"][0]] == ["010.png", "ain.png"]
    assert between["first"] == [[str(photos / "train/cat/001.png"), str(photos / "validation/dog/leak.bmp")]]
    # cat/000.png and dog/000.png of the test split are the same noise.
    assert report["duplicates"]["with other labels"]["count"] == 2


def test_the_share_that_is_held_out_is_a_split_of_its_own(photos):
    report = checked("image-classification", photos, **CLASSIFY, eval_share=0.4)
    counts = [report["splits"][name]["samples"] for name in ("train", "held-out share")]
    assert sum(counts) == 12 and min(counts) > 0 and list(report["splits"]) == ["train", "held-out share"]


def test_masks(tmp_path):
    for split, first in (("training", 0), ("validation", 50)):
        for seed in range(first, first + 4):
            write_pair(tmp_path / "images" / split, tmp_path / "annotations" / split, f"{split}{seed}", seed)
    masks = tmp_path / "annotations" / "training"
    (masks / "training1.png").write_bytes(encoded(np.full((36, 40), 255, np.uint8)))
    (masks / "training2.png").write_bytes(encoded(np.full((36, 40), 7, np.uint8)))
    (masks / "training3.png").write_bytes(encoded(np.zeros((30, 40), np.uint8)))
    options = {**SMALL_HEAD, "class_names": ",".join(CLASSES), "crop_size": 32, "shortest_edge": 32}
    report = checked("semantic-segmentation", tmp_path, **options, max_bad_share=0.5)
    found = report["splits"]["train"]
    pixels = np.bincount(mask(0).ravel(), minlength=3).tolist()
    assert [row["pixels"] for row in found["classes"]] == pixels and found["classes"][0]["images"] == 1
    assert found["empty"]["count"] == 1 and found["empty"]["first"][0].endswith("training1.jpg")
    assert found["unused_labels"] == {"of value 255, which is no class": 36 * 40}
    reasons = " ".join(each["reason"] for each in found["unusable"]["first"])
    assert "labels 7 are not among the 3 classes" in reasons and "its mask 30x40" in reasons
    assert report["refusals"] == []
    report = checked("semantic-segmentation", tmp_path, **options)
    assert "2 of 4 samples cannot be used, more than --max_bad_share 0.01" in report["refusals"][0]


def test_objects(tmp_path):
    def box(*xywh, **more):
        return {"bbox": list(xywh), "category_id": 1, **more}

    objects = {
        "a.png": [box(1, 2, 10, 12), box(-5, 3, 20, 20), box(90, 90, 5, 5), box(4, 4, 0, 6)],
        "b.png": [box(3, 3, 9, 9, category_id=3)],
        "c.png": [box(2, 2, 5, 5, iscrowd=1)],
        "e.png": [box(2, 2, 5, 5, category_id=77)],
    }
    sizes = {name: (40, 50) for name in ("a.png", "b.png", "c.png", "d.png", "e.png")}
    write_coco(tmp_path / "annotations/instances_train.json", tmp_path / "train", sizes, objects=objects)
    write_coco(tmp_path / "annotations/instances_val.json", tmp_path / "val", {"f.png": (41, 51)}, counts=[2])
    report = checked("object-detection", tmp_path, **SMALL_HEAD, keep_unused_classes=False)
    found = report["splits"]["train"]
    assert [(row["name"], row["objects"], row["images"]) for row in found["classes"]] == [
        ("person", 2, 1), ("car", 1, 1),
    ]  # fmt: skip
    assert found["unused_labels"] == {
        "boxes outside their image": 1, "boxes without area": 1, "crowds (iscrowd is 1)": 1,
    }  # fmt: skip
    assert found["changed_labels"] == {"boxes that extend beyond their image: clipped": 1}
    assert found["empty"]["count"] == 2 and "c.png" in found["empty"]["first"][0]
    (unusable,) = found["unusable"]["first"]
    assert "category 77" in unusable["reason"] and "e.png" in unusable["reason"]


def refusal_of_a_training(task, dataset, **more):
    """The error with which a training ends that does not get to its second epoch; None if it takes the data."""
    made = settings(task, dataset, **{"cpu": True, **more})
    try:
        accelerator = make_accelerator(made)
        if made.max_bad_share < 0.01:
            train(get_task(task), made)
        open_training(get_task(task), made, accelerator)
    except (OSError, ValueError, StreamError) as error:
        return str(error)
    finally:
        forget_accelerate()
    return None


def one_class(folder):
    for name in ("train", "validation"):
        for file in (folder / name / "dog").iterdir():
            file.unlink()
        (folder / name / "dog").rmdir()


def no_validation(folder):
    (folder / "validation").rename(folder / "other")


def other_classes(folder):
    (folder / "validation" / "dog").rename(folder / "validation" / "bird")


def nothing(folder):
    pass


@pytest.mark.parametrize("harm", [nothing, one_class, no_validation, other_classes])
def test_refusals_are_those_of_a_training(photos, harm):
    harm(photos)
    report, error = (
        function("image-classification", photos, **CLASSIFY) for function in (checked, refusal_of_a_training)
    )
    assert report["refusals"] == ([] if error is None else [error]) and (error is None) == (harm is nothing)


def test_too_many_broken_files_stop_both(photos):
    for name in ("010", "012"):
        (photos / "train" / "dog" / f"{name}.png").write_bytes(b"")
    options = {**CLASSIFY, "max_bad_share": 0.001, "epochs": 1, "warmup_epochs": 0}
    assert "2 of 12 samples cannot be used" in checked("image-classification", photos, **options)["refusals"][0]
    assert "cannot be used, more than the allowed share" in refusal_of_a_training(
        "image-classification", photos, **options
    )


def test_objects_that_are_all_crowds_stop_both(tmp_path):
    crowd = {"bbox": [2, 2, 9, 9], "category_id": 1, "iscrowd": 1}
    for split in ("train", "val"):
        write_coco(
            tmp_path / f"annotations/instances_{split}.json", tmp_path / split, {"a.png": (40, 50)},
            objects={"a.png": [crowd if split == "train" else {**crowd, "iscrowd": 0}]},
        )  # fmt: skip
    report = checked("object-detection", tmp_path, **SMALL_HEAD | {"batch_size": 1})
    assert report["refusals"] == [refusal_of_a_training("object-detection", tmp_path, **SMALL_HEAD)]
    assert "nothing to learn from: all its 1 objects are of no use" in report["refusals"][0]


def test_too_few_samples_for_a_step(photos):
    options = CLASSIFY | {"batch_size": 100, "max_bad_share": 0.0}  # a training is begun for that
    refusals = checked("image-classification", photos, **options)["refusals"]
    assert refusals == [refusal_of_a_training("image-classification", photos, **options)]
    assert "12 samples do not fill one step of 100" in refusals[0]


def test_interrupted_it_reports_what_was_read(photos, monkeypatch):
    real = check.SplitContent.add

    def add(content, batch):
        real(content, batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(check.SplitContent, "add", add)
    report = checked("image-classification", photos, **CLASSIFY)
    assert not report["complete"] and list(report["splits"]) == ["train"] and report["splits"]["train"]["usable"] == 12


def test_the_command(photos, monkeypatch, capsys):
    def answer(*words):
        monkeypatch.setattr(sys, "argv", ["pvt-hf", "check", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().out

    small = ["--image_size", "32", "--picture", photos / "out" / "samples.png"]
    status, text = answer(photos, *small, "--batch_size", "2")
    assert status == 0 and "read for image-classification" in text and "A training would take these data." in text
    assert Image.open(photos / "out" / "samples.png").width > 900
    status, text = answer(photos, *small)
    assert status == 1 and "A training would refuse these data:\n- " in text
    assert "do not fill one step of 128" in text.partition("refuse")[2]
    status, text = answer(photos, *small, "--json")
    report = json.loads(text)
    assert status == 1 and "do not fill" in report["refusals"][0] and report["task"] == "image-classification"
    assert report["picture"] == str(photos / "out" / "samples.png")


@pytest.mark.parametrize("task", ["semantic-segmentation", "object-detection"])
def test_samples_as_training_sees_them(tmp_path, task):
    from pvt_hf.inference.training_samples import plot_training_samples

    small = {"crop_size": 64, "shortest_edge": 64} if task == "semantic-segmentation" else {"shortest_edges": [64]}
    made = settings(task, tmp_path, **small, shuffle_window=4, num_workers=0)
    object.__setattr__(made, "dataset", "digit-scenes")
    assert plot_training_samples(get_task(task), made, tmp_path / "a.png") == 3
    assert Image.open(tmp_path / "a.png").getextrema() != ((255, 255),) * 3


def test_the_task_is_found(photos, tmp_path):
    write_pair(tmp_path / "m/images/training", tmp_path / "m/annotations/training", "a", 0)
    write_coco(tmp_path / "b/annotations/instances_train.json", tmp_path / "b/train", {"a.png": (40, 50)})
    assert guess_task(str(photos), []) == "image-classification"
    assert guess_task(str(tmp_path / "m"), []) == "semantic-segmentation"
    assert guess_task(str(tmp_path / "b"), []) == "object-detection"
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="No task can read .*none"):
        guess_task(str(tmp_path / "none"), [])
