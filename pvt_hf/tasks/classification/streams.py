"""
Opening a source of labelled images as a stream: built-in digits, a folder of images, parquet files, webdataset tars, or
a Hub data set.

The images stay encoded: `samples.py` decodes them, where a damaged file is a sample to skip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from ...data.digits import digit_images
from ...data.streams import Stream, find_image_column, open_archives, open_digit_scenes, open_source, split_root


# Each training digit is drawn this many times, with other colours, places and sizes: one pass over "digits".
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
    **load_kwargs: Any,
) -> Stream:
    """
    Args:
        source: `"digits"` or `"digit-scenes"` (built in); a folder of images in one sub-folder per class, of parquet
            files, or of webdataset tars, in each case with or without a level of split folders (`train`, `val` ...);
            or the id of a data set on the Hub.
        split: `"train"`, `"validation"` or `"test"`, or any other that the source names. The built-in digits have
            train and test; validation is test there.
        image_column, label_column: found by type (images) and name (labels) if not given.
        class_names: names by label, for sources whose labels are bare integers, or strings to be numbered by this list.
        image_size: side in pixels of the built-in images.
        load_kwargs: for `datasets.load_dataset` of a Hub id: `name`, `revision`, `token` ...

    Returns:
        A [`Stream`]. Image folders have one shard per file and parquet files one per row group, so that shuffling
        shards (`set_epoch`) mixes them well and workers share them evenly.

    Raises:
        FileNotFoundError: nothing there, or no such split; the message lists what there is.
        ValueError: no image column, or several and none named.
    """
    num_samples: int | None
    if source in ("digits", "digit-scenes"):
        digits_split = "test" if split == "validation" else split
        if source == "digits":
            num_samples = {"train": 1442 * DIGIT_RENDERINGS, "test": 355}[digits_split]
            dataset = digit_images(digits_split, image_size=image_size, num_shards=16, length=num_samples)
        else:
            dataset, num_samples = open_digit_scenes(split, image_size)
    else:
        dataset, num_samples = open_source(source, split, _open_folder, load_kwargs)
    features = dataset.features
    image_column = image_column or find_image_column(features, source)
    label_column = label_column or next((name for name in LABEL_COLUMNS if name in features), None)
    for column in filter(None, (image_column, label_column)):
        if column not in features:
            raise ValueError(f"{source} has no column {column!r}; it has {', '.join(features)}.")
    if class_names is None and isinstance(features.get(label_column), datasets.ClassLabel):
        class_names = features[label_column].names
    return Stream(
        name=f"{source} ({split})",
        dataset=dataset.decode(False),
        image_column=image_column,
        label_column=label_column,
        class_names=None if class_names is None else tuple(class_names),
        num_samples=num_samples,
    )


def _open_folder(folder: Path, split: str) -> tuple[datasets.IterableDataset, int | None]:
    root = split_root(folder, split)
    opened = open_archives(root, split, by_name=root is folder)
    if opened is not None:
        return opened
    if root is folder and split != "train":
        raise FileNotFoundError(
            f"{folder} is not divided into splits, so it has no {split!r}: make folders "
            f"{folder / 'train'} and {folder / split}, or hold out a share of the images in training."
        )
    return _open_image_folder(root)


def _open_image_folder(root: Path) -> tuple[datasets.IterableDataset, int]:
    """
    One sub-folder per class, one shard per file.

    `datasets`' own "imagefolder" makes a single shard, class after class, which no shuffle buffer mixes.
    """
    extensions = {extension.lower() for extension in Image.registered_extensions()}
    class_names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files, labels = [], []
    for label, name in enumerate(class_names):
        found = sorted(file for file in (root / name).rglob("*") if file.suffix.lower() in extensions)
        files += [str(file) for file in found]
        labels += [label] * len(found)
    if not files:
        raise FileNotFoundError(
            f"No images found under {root}: expected one sub-folder per class with image files in it, parquet files, "
            "or webdataset tars."
        )
    empty = sorted(set(range(len(class_names))) - set(labels))
    if empty:
        raise FileNotFoundError(f"No images in {', '.join(str(root / class_names[label]) for label in empty)}.")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
    dataset = datasets.IterableDataset.from_generator(
        _read_paths, features=features, gen_kwargs={"files": files, "labels": labels}
    )
    return dataset, len(files)


def _read_paths(files: list[str], labels: list[int]) -> Iterator[dict[str, Any]]:
    for file, label in zip(files, labels):
        yield {"image": {"path": file, "bytes": None}, "label": label}
