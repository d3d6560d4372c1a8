"""
Opening labelled images as a stream: built-in digits, a folder of images, parquet files, webdataset tars, or a data set
on the Hub. The images stay encoded; `samples.py` decodes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from ...data.digits import digit_images, shard_sizes
from ...data.streams import (
    Examples,
    Stream,
    check_columns,
    encoded_image,
    find_image_column,
    image_files,
    make_stream,
    open_archives,
    open_source,
    split_folder,
)


# Renderings of each training digit, in different colours, places and sizes, in one pass over "digits"
DIGIT_RENDERINGS = 8
LABEL_COLUMNS = ("label", "labels", "cls", "class", "category", "target", "fine_label")


def open_classification_stream(
    source: str,
    split: str = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    image_size: int = 64,
) -> Stream:
    """
    Args:
        source: `"digits"` (built in, 10 classes); a folder of images, with a subfolder for each class; a folder of
            parquet files or webdataset tars; or the id of a data set on the Hub. Folders may have a level of splits
            (`train`, `val` ...) above.
        split: `"train"`, `"validation"` or `"test"`, or another name that the source has. The built-in digits have
            train and test; validation is test.
        image_column, label_column: by default found by type (images) and name (labels).
        class_names: names by label, for sources whose labels are integers without names, or strings.
        image_size: side of the built-in images in pixels.

    Returns:
        A [`Stream`] with the columns "image" and, if there is one, "label". An image folder has one shard per file,
        parquet files one per row group, so that shuffled shards mix well and workers share them evenly.

    Raises:
        FileNotFoundError: no such source or split.
        ValueError: no image column, or several and none named; a named column that is not there.
    """
    if source == "digits":
        examples = _open_digits(split, image_size)
    else:
        examples = open_source(source, split, _open_folder)
    features = examples.dataset.features
    check_columns(source, features, image_column, label_column)
    columns = {"image": image_column or find_image_column(source, features)}
    label_column = label_column or next((name for name in LABEL_COLUMNS if name in features), None)
    if label_column:
        columns["label"] = label_column
    if class_names is None and isinstance(features.get(label_column), datasets.ClassLabel):
        class_names = features[label_column].names
    names = None if class_names is None else tuple(class_names)
    return make_stream(source, split, replace(examples, class_names=names), columns)


def _open_digits(split: str, image_size: int) -> Examples:
    split = "test" if split == "validation" else split
    num_samples = 1442 * DIGIT_RENDERINGS if split == "train" else 355
    dataset = digit_images(split, image_size=image_size, num_shards=16, length=num_samples)
    return Examples(dataset, num_samples, shard_sizes=shard_sizes(split, 16, num_samples))


def _open_folder(folder: Path, split: str) -> Examples:
    archives = open_archives(folder, split)
    if archives is not None:
        return archives
    root = split_folder(folder, split)
    if root is folder and split != "train":
        raise FileNotFoundError(
            f"{folder} is not divided into splits, so it has no {split!r}: make folders "
            f"{folder / 'train'} and {folder / split}, or hold out a share of the images in training."
        )
    return _open_image_folder(root)


def _open_image_folder(root: Path) -> Examples:
    """
    One subfolder for each class, one shard for each file.

    `datasets`' own "imagefolder" makes a single shard, class after class, which no shuffle buffer mixes.
    """
    class_names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files, labels = [], []
    for label, name in enumerate(class_names):
        found = image_files(root / name)
        files += [str(file) for file in found]
        labels += [label] * len(found)
    if not files:
        raise FileNotFoundError(
            f"No images found under {root}: expected one subfolder per class with image files in it, parquet files, "
            "or webdataset tars."
        )
    empty = sorted(set(range(len(class_names))) - set(labels))
    if empty:
        raise FileNotFoundError(f"No images in {', '.join(str(root / class_names[label]) for label in empty)}.")
    dataset = datasets.IterableDataset.from_generator(
        _read_files,
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)}),
        gen_kwargs={"files": files, "labels": labels},
    )
    return Examples(dataset, len(files))


def _read_files(files: list[str], labels: list[int]) -> Iterator[dict[str, Any]]:
    for file, label in zip(files, labels):
        yield {"image": encoded_image(file), "label": label}
