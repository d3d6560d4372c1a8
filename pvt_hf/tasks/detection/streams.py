"""
Opening a source of images and objects as a stream: built-in digit scenes, a folder in COCO's layout, parquet files,
webdataset tars, or a Hub data set.

Images and masks stay encoded: `samples.py` decodes them, where a damaged file is a sample to skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from ...data.streams import Stream, find_image_column, open_archives, open_digit_scenes, open_source, split_root
from ...models.image_processing_coco import CATEGORY_FIELDS, may_have_objects
from .coco_folder import find_coco_folder, open_coco_folder


MASKS_COLUMN = "masks"


def open_detection_stream(
    source: str,
    split: str = "train",
    *,
    image_column: str | None = None,
    objects_column: str | None = None,
    image_size: int = 128,
    digit_sizes: Sequence[int] = (),
    keep_empty: bool = True,
    **load_kwargs: Any,
) -> Stream:
    """
    Args:
        source: `"digit-scenes"` (built in, 10 classes, with masks); a folder in one of COCO's layouts, of parquet files
            or of webdataset tars; or the id of a data set on the Hub. COCO's layouts are

                annotations/instances_train2017.json    train2017/a.jpg      COCO; also images/train2017, and "train"
                train/annotations.json                  train/a.jpg          also _annotations.coco.json, train/images
                annotations.json                        images/a.jpg         everything is "train"

            The others have a column of objects as is usual on the Hub: `bbox` ([x, y, width, height] in pixels) and
            `category`, where there is any `area`, `iscrowd` and `segmentation` (polygons or run lengths), in a dict of
            lists or a list of dicts; and beside it `image_id`, and `width` and `height` of the image, if it likes, and
            `masks`, one image per object. In a webdataset it is in NAME.json, alone or as its field `objects`.
        split: `"train"`, `"validation"` or `"test"`, or any other that the source names. The built-in scenes have train
            and test; validation is test there.
        image_column, objects_column: found by type if not given.
        image_size: side in pixels of the built-in scenes.
        digit_sizes: smallest and largest digit in them, in pixels; by default a sixth to a half of the side.
        keep_empty: whether images without objects to learn from come as well (they are background). mmdetection leaves
            them out in training.
        load_kwargs: for `datasets.load_dataset` of a Hub id: `name`, `revision`, `token` ...

    Returns:
        A [`Stream`] with `objects_column`. `class_names` are by label: for COCO's layouts, labels are given to the
        category ids in increasing order, without gaps, and `category_ids` has the id of each. A COCO folder has one
        shard per image, parquet files one per row group. `num_samples` is not known of other sources than COCO folders
        if empty images are left out.

    Raises:
        FileNotFoundError: nothing there, no such split, or no image of it; the message says what was expected.
        ValueError: no column of images or objects, or several images and none named; annotations that cannot be read.
    """
    class_names = category_ids = coco = None
    num_samples: int | None
    if source == "digit-scenes":
        dataset, num_samples = open_digit_scenes(split, image_size, digit_sizes)
    else:
        folder = Path(source)
        coco = find_coco_folder(folder, split) if folder.is_dir() else None
        if coco is not None:
            dataset, class_names, category_ids, num_samples = open_coco_folder(*coco, keep_empty=keep_empty)
        else:
            dataset, num_samples = open_source(source, split, _open_archives, load_kwargs)
    features = dataset.features
    for column in filter(None, (image_column, objects_column)):
        if column not in features:
            raise ValueError(f"{source} has no column {column!r}; it has {', '.join(features)}.")
    objects_column = objects_column or _find_objects_column(features, source)
    stream = Stream(
        name=f"{source} ({split})",
        dataset=dataset.decode(False),
        image_column=image_column or find_image_column(features, source),
        label_column=None,
        class_names=class_names or _category_names(features[objects_column]),
        num_samples=num_samples,
        objects_column=objects_column,
        object_masks_column=MASKS_COLUMN if MASKS_COLUMN in features else None,
        category_ids=category_ids,
    )
    if keep_empty or coco is not None:
        return stream
    filtered = stream.dataset.filter(_has_objects, fn_kwargs={"column": objects_column})
    return replace(stream, dataset=filtered, num_samples=None)


def inner_objects(value: Any) -> Any:
    """The objects themselves of a column that has them as its field `objects`, beside other facts of the image."""
    return value["objects"] if isinstance(value, dict) and "objects" in value else value


def _has_objects(example: dict[str, Any], column: str) -> bool:
    return may_have_objects(inner_objects(example[column]))


def _find_objects_column(features: datasets.Features, source: str) -> str:
    found = [name for name, feature in features.items() if "bbox" in _fields(feature)]
    if "objects" in found or len(found) == 1:
        return "objects" if "objects" in found else found[0]
    raise ValueError(
        f"{source} has {f'the columns {found} with a bbox' if found else f'no bbox in any of {list(features)}'}: "
        "expected a column of objects with bbox ([x, y, width, height] in pixels) and category, as a dict of lists or "
        "a list of dicts. Name it with objects_column."
    )


def _fields(feature: Any) -> dict[str, Any]:
    """The features by name of a column of objects, in whichever form; empty for any other column."""
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


def _open_archives(folder: Path, split: str) -> tuple[datasets.IterableDataset, int | None]:
    root = split_root(folder, split)
    opened = open_archives(root, split, by_name=root is folder)
    if opened is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{folder} holds no images with objects of the split {split!r}. Expected in it: "
            "annotations/instances_SPLIT.json and a folder SPLIT of images, or SPLIT/annotations.json beside images, "
            "or annotations.json and images (for 'train' alone); or parquet files or webdataset tars. There is: "
            f"{there}."
        )
    return opened
