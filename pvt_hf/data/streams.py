"""
Opening a source of images: a folder of files, parquet files, webdataset tars, a Hub data set, or built-in scenes.

All become a `datasets.IterableDataset` whose images are still encoded. They are decoded where samples are made, where a
corrupt file is a sample to skip and not the end of a training run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from .digits import digit_scenes, shard_sizes


# Names of the three splits in folder and file names
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "eval"),
    "test": ("test", "testing"),
}


class StreamError(RuntimeError):
    """A stream that cannot continue: its source cannot be read, or too many of its samples are unusable."""


@dataclass(frozen=True)
class Stream:
    """
    An opened split of a source.

    Attributes:
        name: source and split, for messages.
        dataset: examples as dicts. Every image is encoded: `{"bytes": ..., "path": ...}`.
        columns: the columns that a task reads, by role, such as `{"image": "img", "label": "fine_label"}`. There is
            always an "image".
        class_names: names by label, if the source has them.
        num_samples: examples in one pass, if known.
        category_ids: the source's number for each label, if that is not the label itself: COCO's numbers have gaps.
        shard_sizes: examples in each shard, in order; needed where they are not one per shard.
    """

    name: str
    dataset: datasets.IterableDataset
    columns: dict[str, str] = field(default_factory=lambda: {"image": "image"})
    class_names: tuple[str, ...] | None = None
    num_samples: int | None = None
    category_ids: tuple[int, ...] | None = None
    shard_sizes: tuple[int, ...] | None = None

    @property
    def image_column(self) -> str:
        return self.columns["image"]

    def column(self, role: str) -> str:
        """The name of a column. Raises a ValueError if the stream has none for that role."""
        if role not in self.columns:
            raise ValueError(f"{self.name} has no {role} column: name it with {role}_column.")
        return self.columns[role]


@dataclass(frozen=True)
class Examples:
    """What a source has of a split, before its columns are known. For the attributes see [`Stream`]."""

    dataset: datasets.IterableDataset
    num_samples: int | None = None
    class_names: tuple[str, ...] | None = None
    category_ids: tuple[int, ...] | None = None
    shard_sizes: tuple[int, ...] | None = None


def make_stream(source: str, split: str, examples: Examples, columns: dict[str, str]) -> Stream:
    """A stream of undecoded examples."""
    return Stream(
        name=f"{source} ({split})",
        dataset=examples.dataset.decode(False),
        columns=columns,
        class_names=examples.class_names,
        num_samples=examples.num_samples,
        category_ids=examples.category_ids,
        shard_sizes=examples.shard_sizes,
    )


def open_source(source: str, split: str, open_folder: Callable[[Path, str], Examples]) -> Examples:
    """
    The examples of a folder, from `open_folder(folder, split)`, or of a data set on the Hub.

    Raises:
        FileNotFoundError: no such folder or data set; and what `open_folder` raises.
    """
    folder = Path(source)
    if folder.is_dir():
        examples = open_folder(folder, split)
    elif folder.exists() or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{source} is not a folder: give a folder of images, parquet files or tars.")
    else:
        examples = _open_hub(source, split)
    dataset = examples.dataset
    if dataset.features is None:  # not declared: found in the first examples
        dataset = dataset._resolve_features()
    for name, feature in dataset.features.items():
        if _is_image_without_metadata(feature):
            dataset = dataset.cast_column(name, datasets.Image())
    return replace(examples, dataset=dataset)


def _open_hub(source: str, split: str) -> Examples:
    try:
        dataset = datasets.load_dataset(source, split=split, streaming=True)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"There is no folder {source} here, and no data set of that name could be read from the Hub: {error}"
        ) from error
    split_info = (dataset.info.splits or {}).get(split)
    return Examples(dataset, split_info.num_examples if split_info is not None else None)


def _is_image_without_metadata(feature: Any) -> bool:
    """Whether a column is laid out as `datasets` stores images, in a file that another program wrote."""
    return isinstance(feature, dict) and {name: getattr(feature[name], "dtype", None) for name in feature} == {
        "bytes": "binary",
        "path": "string",
    }


def open_digit_scenes(split: str, image_size: int, digit_sizes: Sequence[int] = ()) -> Examples:
    """
    The built-in scenes, squares of `image_size` pixels: 4,000 to train on, 400 to test. Validation is test.

    Args:
        digit_sizes: smallest and largest digit in pixels, see [`pvt_hf.data.digits.digit_scenes`]; empty: its default.
    """
    split = "test" if split == "validation" else split
    num_samples = 4000 if split == "train" else 400
    dataset = digit_scenes(
        split, image_size, image_size, digit_sizes=digit_sizes or None, num_shards=16, length=num_samples
    )
    return Examples(dataset, num_samples, shard_sizes=shard_sizes(split, 16, num_samples))


# Columns


def check_columns(source: str, features: datasets.Features, *columns: str | None) -> None:
    """Raises a ValueError for a column that is named but not there."""
    for column in filter(None, columns):
        if column not in features:
            raise ValueError(f"{source} has no column {column!r}; it has {', '.join(features)}.")


def image_columns(features: datasets.Features) -> list[str]:
    """The columns of images."""
    return [name for name, feature in features.items() if isinstance(feature, datasets.Image)]


def find_image_column(source: str, features: datasets.Features) -> str:
    """The only column of images, or the one that is called "image". Raises a ValueError if there is neither."""
    images = image_columns(features)
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    raise ValueError(
        f"{source} has {f'the image columns {images}' if images else f'no image column among {list(features)}'}: "
        "name the one to read with image_column."
    )


# Folders and files


def split_folder(folder: Path, split: str) -> Path:
    """
    The subfolder of a split; `folder` itself if it is not divided into splits.

    Raises:
        FileNotFoundError: it has a folder for training, but none for this split.
    """
    folders = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    known = [name for names in SPLIT_NAMES.values() for name in names if name in folders]
    found = next((folders[name] for name in SPLIT_NAMES.get(split, (split,)) if name in folders), None)
    # Without a training folder, "test" may as well be a class.
    if found is None and any(name in folders for name in SPLIT_NAMES["train"]):
        raise FileNotFoundError(f"{folder} has no split {split!r}; its folders are {', '.join(known)}.")
    return found or folder


def open_archives(folder: Path, split: str) -> Examples | None:
    """
    The parquet files or webdataset tars of a split; None if the folder has none.

    Raises:
        FileNotFoundError: the folder has files, but none for this split.
        ValueError: a file cannot be opened.
    """
    root = split_folder(folder, split)
    for builder, pattern in (("parquet", "*.parquet"), ("webdataset", "*.tar")):
        files = sorted(root.rglob(pattern))
        if not files:
            continue
        if root is folder:
            files = _files_of_split(files, split)
        try:
            data_files = {split: [str(file) for file in files]}
            dataset = datasets.load_dataset(builder, data_files=data_files, split=split, streaming=True)
        except Exception as error:  # an empty or damaged file, in the words of whatever library reads it
            raise ValueError(
                f"{root}: the {builder} files ({files[0].name} ...) cannot be opened; perhaps the first of them is "
                f"empty or damaged: {type(error).__name__}: {error}"
            ) from error
        if builder == "webdataset":
            return Examples(dataset)
        sizes = _row_groups(files)
        return Examples(dataset.reshard(), sum(sizes), shard_sizes=sizes)
    return None


def _files_of_split(files: list[Path], split: str) -> list[Path]:
    """The files named after the split, as on the Hub. If none is named after any split, all are for training."""
    all_names = tuple(name for names in SPLIT_NAMES.values() for name in names)
    if any(file.name.startswith(all_names) for file in files):
        chosen = [file for file in files if file.name.startswith(SPLIT_NAMES.get(split, (split,)))]
    else:
        chosen = files if split == "train" else []
    if not chosen:
        raise FileNotFoundError(f"No file of split {split!r} among {', '.join(file.name for file in files[:6])} ...")
    return chosen


def _row_groups(files: list[Path]) -> tuple[int, ...]:
    """Rows of each row group."""
    import pyarrow.parquet

    metadata = [pyarrow.parquet.ParquetFile(file).metadata for file in files]
    return tuple(each.row_group(index).num_rows for each in metadata for index in range(each.num_row_groups))


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, in order."""
    extensions = {extension.lower() for extension in Image.registered_extensions()}
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in extensions)


def encoded_image(path: str | None) -> dict[str, Any] | None:
    """A file as an undecoded image."""
    return None if path is None else {"path": path, "bytes": None}


def nothing_found(folder: Path, split: str, wanted: str, layouts: str) -> FileNotFoundError:
    """The error for a folder in which no layout is recognised."""
    there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    return FileNotFoundError(
        f"{folder} has no {wanted} for the split {split!r}. Expected in it: {layouts}; or parquet files or webdataset "
        f"tars. There is: {there}."
    )
