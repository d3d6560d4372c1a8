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
from ...data.folders import (
    LeftOut,
    composed,
    find_split,
    find_split_file,
    folded,
    image_files,
    inner_folder,
    list_folder,
    no_such_split,
    not_divided,
    readable_images,
    split_in,
    split_of,
    subfolders,
)
from ...data.streams import (
    Examples,
    Stream,
    check_columns,
    digit_split,
    encoded_image,
    find_image_column,
    make_stream,
    open_archives,
    open_source,
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
            (`train`, `Validation` ...) above; see [`pvt_hf.data.folders`].
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
        ValueError: no image column, or several and none named; a named column that is not there; a class named like a
            split, or two that differ only in case.
    """
    if source == "digits":
        examples = _open_digits(split, image_size)
    else:
        examples = open_source(source, split, _open_folder)
    features = examples.features
    check_columns(source, features, image_column, label_column)
    columns = {"image": image_column or find_image_column(source, features)}
    by_name = {name.casefold(): name for name in features}
    label_column = label_column or next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)
    if label_column:
        columns["label"] = label_column
    if class_names is None and isinstance(features.get(label_column), datasets.ClassLabel):
        class_names = features[label_column].names
    names = None if class_names is None else tuple(class_names)
    return make_stream(source, split, replace(examples, class_names=names), columns)


def _open_digits(split: str, image_size: int) -> Examples:
    split = digit_split(split)
    num_samples = 1442 * DIGIT_RENDERINGS if split == "train" else 355
    dataset = digit_images(split, image_size=image_size, num_shards=16, length=num_samples)
    return Examples(dataset, num_samples, shard_sizes=shard_sizes(split, 16, num_samples))


def _open_folder(folder: Path, split: str, left_out: LeftOut) -> Examples:
    archives = open_archives(folder, split, left_out)
    if archives is not None:
        return archives
    root = _folder_of_classes(folder, split, left_out)
    training = root if root == folder else _find_splits(subfolders(folder, left_out), "train")[1]
    unsaid = LeftOut()  # what the training split leaves out is reported when that is opened
    spelling = [path.name for path in subfolders(inner_folder(training, unsaid), unsaid)] if training else []
    return _open_image_folder(root, {folded(name): composed(name) for name in spelling}, left_out)


def _find_splits(folders: list[Path], split: str) -> tuple[list[Path], Path | None]:
    """The folders that are named after splits, and that of this split."""
    splits = [path for path in folders if split_of(path.name)]
    if not splits and len({split_in(path.name) for path in folders} - {None}) > 1:
        # No folder is named after a split alone, but several splits are in the names: seg_train, seg_test
        splits = [path for path in folders if split_in(path.name)]
        return splits, find_split_file(splits, split, lambda path: path.name)
    return splits, find_split(folders, split)


def _folder_of_classes(folder: Path, split: str, left_out: LeftOut) -> Path:
    """
    The folder that has the classes of a split as its subfolders.

    Raises:
        FileNotFoundError: no such split.
        ValueError: a folder named like a split has images and no subfolders, as a class has.
    """
    folders = subfolders(folder, left_out)
    splits, found = _find_splits(folders, split)
    divided = [path for path in splits if subfolders(path, left_out)]
    like_classes = [path for path in ([found] if found in splits else splits) if path not in divided]
    if like_classes and (found or not divided):
        names = ", ".join(path.name for path in like_classes)
        first = like_classes[0].name
        raise ValueError(
            f"{folder}: {names} is named like a split, but has no subfolders. If it is a class, put the folders of all "
            f"classes into {folder / 'train'} (so that there is {Path('train', first)}), where a class may have any "
            f"name. If it is a split, put its images into one subfolder per class: {Path(first, 'CLASS', 'a.jpg')}."
        )
    if found is not None:
        for path in folders:
            if path not in splits:
                left_out.add("folders beside the splits", path)
        return inner_folder(found, left_out)
    if splits:
        raise no_such_split(folder, split, splits)
    if split != "train":
        raise not_divided(folder, split)
    return folder


def _open_image_folder(root: Path, spelling: dict[str, str], left_out: LeftOut) -> Examples:
    """
    One subfolder for each class, one shard for each file.

    `datasets`' own "imagefolder" makes a single shard, class after class, which no shuffle buffer mixes.

    Args:
        spelling: the names of classes as the training split spells them, by their [`folded`] names.
    """
    folders, loose_files = list_folder(root, left_out)
    by_class: dict[str, Path] = {}
    for path in folders:
        other = by_class.setdefault(spelling.get(folded(path.name), composed(path.name)), path)
        if other != path:
            raise ValueError(
                f"{root}: {other.name} and {path.name} differ only in case or in how accents are stored: one class or "
                "two? Rename one."
            )
    class_names = sorted(by_class)
    files, labels = [], []
    for label, name in enumerate(class_names):
        found = image_files(by_class[name], left_out)
        files += [str(file) for file in found]
        labels += [label] * len(found)
    for file in readable_images(loose_files, left_out):
        left_out.add("images outside the folders of classes", file)
    hint = f" (left out: {left_out})" if left_out.paths else ""
    if not files:
        raise FileNotFoundError(
            f"No images found under {root}{hint}: expected one subfolder per class with image files in it, parquet "
            "files, or webdataset tars."
        )
    empty = sorted(set(range(len(class_names))) - set(labels))
    if empty:
        folders_without = ", ".join(str(by_class[class_names[label]]) for label in empty)
        raise FileNotFoundError(f"No images in {folders_without}{hint}: add some, or remove the folder.")
    dataset = datasets.IterableDataset.from_generator(
        _read_files,
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)}),
        gen_kwargs={"files": files, "labels": labels},
    )
    return Examples(dataset, len(files))


def _read_files(files: list[str], labels: list[int]) -> Iterator[dict[str, Any]]:
    for file, label in zip(files, labels):
        yield {"image": encoded_image(file), "label": label}
