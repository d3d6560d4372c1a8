"""
Opening images with objects as a stream: built-in digit scenes, a folder in COCO's or YOLO's layout, parquet files,
webdataset tars, or a data set on the Hub. Images and masks stay encoded; `samples.py` decodes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from ...data.folders import LeftOut, nothing_found
from ...data.streams import (
    Examples,
    Stream,
    check_columns,
    find_image_column,
    make_stream,
    open_archives,
    open_digit_scenes,
    open_source,
)
from ...models.image_processing_coco import CATEGORY_FIELDS, may_have_objects
from .coco_folder import find_coco_files, open_coco_files
from .yolo_folder import find_class_list, find_yolo_data, find_yolo_folders, open_yolo, read_yolo_data


MASKS_COLUMN = "masks"
YAML_ENDINGS = (".yaml", ".yml")
# An object has a box, or a polygon from which the box is computed.
BOX_FIELDS = {"bbox", "segmentation"}
LAYOUTS = (
    "annotations/instances_SPLIT.json and a folder SPLIT of images, or SPLIT/annotations.json beside images, or "
    "annotations.json and images (for 'train' only), or data.yaml with images and labels (YOLO)"
)


def open_detection_stream(
    source: str,
    split: str = "train",
    *,
    image_column: str | None = None,
    objects_column: str | None = None,
    image_size: int = 128,
    digit_sizes: Sequence[int] = (),
    keep_empty: bool = True,
    keep_unused_classes: bool = True,
) -> Stream:
    """
    Args:
        source: `"digit-scenes"` (built in, 10 classes, with masks); a folder in COCO's or YOLO's layout, or
            the YAML file of the latter; a folder of
            parquet files or webdataset tars; or the id of a data set on the Hub. COCO's and YOLO's layouts are

                annotations/instances_train2017.json    train2017/a.jpg      COCO; also images/train2017, and "train"
                train/annotations.json                  train/a.jpg          also _annotations.coco.json, train/images
                annotations.json                        images/a.jpg         everything is "train"
                data.yaml                               images/train/a.jpg   labels/train/a.txt; or train/images ...

            The others have a column of objects as is usual on the Hub: a dict of lists or a list of dicts with `bbox`
            ([x, y, width, height] in pixels), `category`, and optionally `area`, `iscrowd` and `segmentation` (polygons
            or RLE). Optional columns beside it are `image_id`, `width` and `height` of the image, and `masks`, one
            image per object. A webdataset has the objects in NAME.json, directly or as its field `objects`.
        split: `"train"`, `"validation"` or `"test"`, or another name that the source has. The built-in scenes have
            train and test; validation is test.
        image_column, objects_column: by default found by type.
        image_size: side of the built-in scenes in pixels.
        digit_sizes: smallest and largest digit in them, in pixels. Default: one sixth and one half of the side.
        keep_empty: whether to keep images without objects to learn from (all of them is background). mmdetection leaves
            them out in training.
        keep_unused_classes: whether to keep classes without objects. They are named in the log. Without them, labels
            are the remaining classes.

    Returns:
        A [`Stream`] with the columns "image", "objects" and, if there is one, "masks". In COCO's and YOLO's layouts,
        labels number the categories in the order of their ids, without gaps; `class_names` and `category_ids` are by
        label. Such a folder has one shard per image, parquet files one per row group. Without empty images,
        `num_samples` is only known for such folders.

    Raises:
        FileNotFoundError: no such source or split, or no image of it.
        ValueError: no column of images or objects, or several image columns and none named; a named column that is not
            there; annotations that cannot be read; `keep_unused_classes` is off and the source is not a folder in
            COCO's or YOLO's layout, whose objects are known when it is opened.
    """
    if source == "digit-scenes":
        examples = open_digit_scenes(split, image_size, digit_sizes)
    elif Path(source).suffix in YAML_ENDINGS and Path(source).is_file():
        left_out = LeftOut()
        found = read_yolo_data(Path(source), split, left_out)
        left_out.report(source, split)
        examples = open_yolo(found, keep_empty, keep_unused_classes)
    else:
        examples = open_source(
            source, split, partial(_open_folder, keep_empty=keep_empty, keep_unused_classes=keep_unused_classes)
        )
    if not keep_unused_classes and examples.category_ids is None:
        raise ValueError(
            f"{source}: classes without objects can be left out of folders in COCO's and YOLO's layouts only. Name the "
            "classes to keep with class_names."
        )
    features = examples.features
    check_columns(source, features, image_column, objects_column)
    objects_column = objects_column or _find_objects_column(source, features)
    columns = {"image": image_column or find_image_column(source, features), "objects": objects_column}
    if MASKS_COLUMN in features:
        columns["masks"] = MASKS_COLUMN
    class_names = examples.class_names or _category_names(features[objects_column])
    stream = make_stream(source, split, replace(examples, class_names=class_names), columns)
    if keep_empty or stream.category_ids is not None:  # COCO folders are filtered already
        return stream
    filtered = stream.dataset.filter(_has_objects, fn_kwargs={"column": objects_column})
    return replace(stream, dataset=filtered, num_samples=None, shard_sizes=None)


def inner_objects(value: Any) -> Any:
    """The objects of a column that may have them as its field `objects`, beside facts about the image."""
    return value["objects"] if isinstance(value, dict) and "objects" in value else value


def _has_objects(example: dict[str, Any], column: str) -> bool:
    return may_have_objects(inner_objects(example[column]))


def _find_objects_column(source: str, features: datasets.Features) -> str:
    found = [name for name, feature in features.items() if BOX_FIELDS & _fields(feature).keys()]
    if "objects" in found or len(found) == 1:
        return "objects" if "objects" in found else found[0]
    raise ValueError(
        f"{source} has {f'the columns {found} with a bbox' if found else f'no bbox in any of {list(features)}'}: "
        "expected a column of objects with bbox ([x, y, width, height] in pixels) and category, as a dict of lists or "
        "a list of dicts. Name it with objects_column."
    )


def _fields(feature: Any) -> dict[str, Any]:
    """The features of a column of objects, by name; empty for any other column."""
    feature = inner_objects(feature)
    feature = getattr(feature, "feature", feature)  # a list of dicts
    return feature if isinstance(feature, dict) else {}


def _category_names(feature: Any) -> tuple[str, ...] | None:
    fields = _fields(feature)
    for name in CATEGORY_FIELDS:
        category = getattr(fields.get(name), "feature", fields.get(name))
        if isinstance(category, datasets.ClassLabel):
            return tuple(category.names)
    return None


def _open_folder(folder: Path, split: str, left_out: LeftOut, keep_empty: bool, keep_unused_classes: bool) -> Examples:
    data = find_yolo_data(folder)
    if data is not None:
        return open_yolo(read_yolo_data(data, split, left_out), keep_empty, keep_unused_classes)
    # Beside a list of class names, another JSON file is not COCO's, such as Label Studio's notes.json.
    files = None if find_class_list(folder) else find_coco_files(folder, split, left_out)
    if files is not None:
        return open_coco_files(*files, keep_empty, keep_unused_classes)
    folders = find_yolo_folders(folder, split, left_out)
    if folders is not None:
        return open_yolo(folders, keep_empty, keep_unused_classes)
    archives = open_archives(folder, split, left_out)
    if archives is None:
        raise nothing_found(folder, split, "images with objects", LAYOUTS)
    return archives
