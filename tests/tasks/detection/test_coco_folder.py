"""
Finding COCO's annotation files and their images in folders as tools write them, from real files made on the spot.

    pytest tests/tasks/detection/test_coco_folder.py
"""

import pytest

from pvt_hf.tasks.detection.streams import open_detection_stream

from ...support.detection_files import write_coco


# Annotation file and folder of images of each split
LAYOUTS = {
    "COCO": {"train": ("annotations/instances_train2017.json", "train2017"),
             "validation": ("annotations/instances_val2017.json", "val2017")},
    "capitals": {"train": ("Annotations/instances_Train.JSON", "Images/train"),
                 "validation": ("Annotations/instances_Validation.json", "Images/VAL")},
    "CVAT": {"train": ("annotations/instances_default.json", "images/default")},
    "CVAT without a folder of images": {"train": ("annotations/instances_default.json", ".")},
    "CVAT with subsets": {"train": ("annotations/instances_Train.json", "images/Train"),
                          "test": ("annotations/instances_Test.json", "images/Test")},
    "beside the images": {"train": ("instances_train.json", "images/train"),
                          "validation": ("instances_val.json", "images/val")},
    "Roboflow": {"train": ("train/_annotations.coco.json", "train"),
                 "validation": ("valid/_annotations.coco.json", "valid"),
                 "test": ("test/_annotations.coco.json", "test")},
    "FiftyOne": {"train": ("labels.json", "data")},
    "Label Studio": {"train": ("result.json", "images")},
    "names after the split": {"train": ("annotations/lvis_v1_train.json", "images"),
                              "validation": ("annotations/lvis_v1_val.json", "images")},
    "files in the root": {"train": ("Train.json", "images"), "test": ("test_annotations.json", "images")},
    "unpacked": {"train": ("a/b/annotations/instances_train.json", "a/b/train")},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    counts = {"train": 3, "validation": 2, "test": 1}
    for split, (file, images) in LAYOUTS[layout].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        sizes = {f"{split}_{index}.png": (40, 40) for index in range(counts[split])}
        write_coco(tmp_path / file, tmp_path / images, sizes)
        for junk in (f"._{(tmp_path / file).name}", f"captions_{split}2017.json"):
            (tmp_path / file).with_name(junk).write_text("junk")
    for split in LAYOUTS[layout]:
        stream = open_detection_stream(str(tmp_path), split)
        paths = [example["image"]["path"] for example in stream.dataset]
        expected = (tmp_path / LAYOUTS[layout][split][1]).glob(f"{split}_*.png")
        assert sorted(paths) == sorted(map(str, expected)) and len(paths) == counts[split]
    for split in counts.keys() - LAYOUTS[layout].keys():
        with pytest.raises(FileNotFoundError, match=f"'{split}'"):
            open_detection_stream(str(tmp_path), split)


def test_two_files_for_one_split(tmp_path):
    for year in (2014, 2017):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        write_coco(
            tmp_path / "annotations" / f"instances_train{year}.json",
            tmp_path / f"train{year}",
            {f"{year}.png": (40, 40)},
        )
    with pytest.raises(ValueError, match=r"more than one 'train': instances_train2014.json, .*2017.json"):
        open_detection_stream(str(tmp_path))
    (example,) = open_detection_stream(str(tmp_path), "train2017").dataset
    assert example["image"]["path"].endswith("train2017/2017.png")
