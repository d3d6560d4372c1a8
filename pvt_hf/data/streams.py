"""
Opening a source of images: a folder of files, parquet files, webdataset tars, a Hub data set, or built-in scenes.

All become a `datasets.IterableDataset` whose images are still encoded. They are decoded where samples are made, where a
corrupt file is a sample to skip and not the end of a training run.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from .digits import digit_scenes, shard_sizes
from .folders import LeftOut, files_below, inner_folder, known_split, split_folder, split_in
from .parquet import open_parquet
from .webdataset import check_complete
from .webdataset_builder import TarDataset


# Rows that are looked at to find out what a column of bytes has: the first ones may be damaged
ROWS_LOOKED_AT = 16
# How Arrow stores bytes
BINARY_TYPES = ("binary", "large_binary", "binary_view")


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
        category_ids: the source's id for each label, if that is not the label itself: COCO's numbers have gaps.
        shard_sizes: examples in each shard, in order; needed where they are not one per shard.
    """

    name: str
    dataset: datasets.IterableDataset
    columns: dict[str, str] = field(default_factory=lambda: {"image": "image"})
    class_names: tuple[str, ...] | None = None
    num_samples: int | None = None
    category_ids: tuple[int | str, ...] | None = None
    shard_sizes: tuple[int, ...] | None = None

    @property
    def image_column(self) -> str:
        return self.columns["image"]

    def column(self, role: str) -> str:
        """The name of a column. Raises a ValueError if the stream has none for that role."""
        if role not in self.columns:
            raise ValueError(f"{self.name} has no {role} column: name it with {role}_column.")
        return self.columns[role]

    def title(self, role: str) -> str:
        """The role of a column, and its name if that differs, for messages about its values."""
        column = self.column(role)
        return role if column == role else f"{role} (column {column!r})"


@dataclass(frozen=True)
class Examples:
    """What a source has of a split, before its columns are known. For the attributes see [`Stream`]."""

    dataset: datasets.IterableDataset
    num_samples: int | None = None
    class_names: tuple[str, ...] | None = None
    category_ids: tuple[int | str, ...] | None = None
    shard_sizes: tuple[int, ...] | None = None

    @property
    def features(self) -> datasets.Features:
        """The columns of the source, without those that readers add (`__key__`, `__row__`)."""
        found = self.dataset.features
        return datasets.Features({name: found[name] for name in found if not name.startswith("__")})


def make_stream(source: str, split: str, examples: Examples, columns: dict[str, str]) -> Stream:
    """A stream of undecoded examples. Raises a ValueError for a column without any value."""
    for role, column in columns.items():
        if _is_null(examples.dataset.features[column]):
            raise ValueError(f"{source} ({split}): the column {column!r} ({role}) is null in every row, from row 0 on.")
    return Stream(
        name=f"{source} ({split})",
        dataset=examples.dataset.decode(False),
        columns=columns,
        class_names=examples.class_names,
        num_samples=examples.num_samples,
        category_ids=examples.category_ids,
        shard_sizes=examples.shard_sizes,
    )


def open_source(source: str, split: str, open_folder: Callable[[Path, str, LeftOut], Examples]) -> Examples:
    """
    The examples of a folder, from `open_folder(folder, split, left_out)`, or of a data set on the Hub. What is left
    out of a folder is logged.

    Raises:
        FileNotFoundError: no such folder or data set; and what `open_folder` raises.
    """
    folder = Path(source)
    if folder.is_dir():
        left_out = LeftOut()
        try:
            examples = open_folder(inner_folder(folder, left_out), split, left_out)
        finally:
            left_out.report(source, split)
    elif folder.exists() or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{source} is not a folder: give a folder of images, parquet files or tars.")
    else:
        examples = _open_hub(source, split)
    dataset = examples.dataset
    if dataset.features is None:  # not declared: found in the first examples
        dataset = dataset._resolve_features()
    return replace(examples, dataset=_with_usual_types(dataset))


def _open_hub(source: str, split: str) -> Examples:
    try:
        dataset = datasets.load_dataset(source, split=split, streaming=True)
    except (ConnectionError, FileNotFoundError, RuntimeError) as error:  # the last: it is a script, which is not run
        raise FileNotFoundError(
            f"There is no folder {source} here, and no data set of that name could be read from the Hub: {error}"
        ) from error
    split_info = (dataset.info.splits or {}).get(split)
    return Examples(dataset, split_info.num_examples if split_info is not None else None)


def _with_usual_types(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    """Casts columns that other programs than `datasets` wrote: images to `Image`, booleans to two classes."""
    binary = [name for name, feature in dataset.features.items() if getattr(feature, "dtype", "") in BINARY_TYPES]
    rows = list(dataset.decode(False).take(ROWS_LOOKED_AT)) if binary else []
    for name, feature in dataset.features.items():
        if _is_image_without_metadata(feature) or (name in binary and _are_images([row.get(name) for row in rows])):
            dataset = dataset.cast_column(name, datasets.Image())
        elif getattr(feature, "dtype", None) == "bool":
            dataset = dataset.cast_column(name, datasets.ClassLabel(names=["false", "true"]))
    return dataset


def _is_image_without_metadata(feature: Any) -> bool:
    """Whether a column is laid out as `datasets` stores images: bytes, and perhaps a path and more."""
    return isinstance(feature, dict) and getattr(feature.get("bytes"), "dtype", None) in BINARY_TYPES


def _are_images(values: list[bytes | None]) -> bool:
    """Whether any of these bytes are an image. Nulls and empty bytes say nothing; if there is nothing else, yes."""
    content = [value for value in values if value]
    return not content or any(map(_is_image, content))


def _is_image(value: bytes) -> bool:
    """Whether bytes begin like an image."""
    try:
        Image.open(io.BytesIO(value))
    except Exception:  # Pillow's decoders raise a dozen types on damaged data
        return False
    return True


def digit_split(split: str) -> str:
    """The split of the built-in digits: validation is test. Raises a ValueError for one that they do not have."""
    if split not in ("train", "validation", "test"):
        raise ValueError(
            f"The built-in digits have the splits train, validation (which is test) and test, got {split!r}."
        )
    return "test" if split == "validation" else split


def open_digit_scenes(split: str, image_size: int, digit_sizes: Sequence[int] = ()) -> Examples:
    """
    The built-in scenes, squares of `image_size` pixels: 4,000 to train on, 400 to test. Validation is test.

    Args:
        digit_sizes: smallest and largest digit in pixels, see [`pvt_hf.data.digits.digit_scenes`]; empty: its default.
    """
    split = digit_split(split)
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
    null = [name for name, feature in features.items() if _is_null(feature)]
    raise ValueError(
        f"{source} has {f'the image columns {images}' if images else f'no image column among {list(features)}'}"
        f"{f' ({null} are null in every row, from row 0 on)' if null else ''}: name the one to read with image_column."
    )


def _is_null(feature: Any) -> bool:
    """Whether a column has no value in any row."""
    return getattr(feature, "dtype", None) == "null"


# Files


def open_archives(folder: Path, split: str, left_out: LeftOut) -> Examples | None:
    """
    The parquet files or webdataset tars of a split; None if the folder has none.

    Raises:
        FileNotFoundError: the folder has files, but none for this split.
        ValueError: a file cannot be opened.
    """
    root = split_folder(folder, split, left_out)
    found = files_below(root, left_out)
    for builder, ending in (("parquet", ".parquet"), ("webdataset", ".tar")):
        files = [file for file in found if file.suffix.lower() == ending]
        if not files:
            continue
        if root is folder:
            files = _files_of_split(files, split)
        try:
            if builder == "parquet":
                dataset, sizes = open_parquet(files, folder)
                return Examples(dataset, sum(sizes), shard_sizes=sizes)
            for file in files:
                check_complete(file)
            tars = TarDataset(data_files={split: [str(file) for file in files]})
            return Examples(tars.as_streaming_dataset(split=split))
        except Exception as error:  # an empty or damaged file, in the words of whatever library reads it
            known = type(error) is ValueError  # of this package, and clear
            reason = error if known else f"perhaps one is empty or damaged: {type(error).__name__}: {error}"
            raise ValueError(f"{root}: the {builder} files ({files[0].name} ...) cannot be opened: {reason}") from error
    return None


def _files_of_split(files: list[Path], split: str) -> list[Path]:
    """The files named after the split, as on the Hub. If none is named after any split, all are for training."""
    chosen = [file for file in files if file.name.casefold().startswith(split.casefold())]
    if not chosen and any(split_in(file.name) for file in files):
        chosen = [file for file in files if known_split(split) and split_in(file.name) == known_split(split)]
    elif not chosen:
        chosen = files if split == "train" else []
    if not chosen:
        raise FileNotFoundError(f"No file of split {split!r} among {', '.join(file.name for file in files[:6])} ...")
    return chosen


def encoded_image(path: str | None) -> dict[str, Any] | None:
    """A file as an undecoded image."""
    return None if path is None else {"path": path, "bytes": None}


def require_class_names(stream: Stream, class_names: Sequence[str] | None, from_label: int = 0) -> tuple[str, ...]:
    """`class_names` as a tuple. Raises a ValueError if there are none, naming the first label that needs one."""
    if not class_names:
        order = f" from {from_label} on, since lower ones are ignored" if from_label else ""
        raise ValueError(
            f"The labels of {stream.name} have no names: give class_names, in the order of the labels{order}."
        )
    return tuple(class_names)
