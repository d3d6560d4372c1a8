"""
Opening a source of images as a stream: built-in digits, a folder, parquet files, webdataset tars, or a Hub data set.

What comes out is a `datasets.IterableDataset` whose images are still encoded: decoding happens in
`pvt_hf.data.samples`, where a corrupt file is a sample to skip and not the end of a training run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from .digits import digit_scenes


# What people call the three splits, in folder and file names
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "eval"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Stream:
    """
    An opened source.

    Attributes:
        name: source and split, for messages.
        dataset: examples as dicts; every image is `{"bytes": ..., "path": ...}`.
        image_column, label_column: where a classification example has its image and its label (None: no label).
        class_names: names by label, if the source has them.
        num_samples: examples in one pass, if the source says so.
        mask_column: where a segmentation example has its mask (None: none), an undecoded image as well.
        objects_column: where a detection example has its objects, see `image_processing_coco.read_objects`.
        object_masks_column: where it has one undecoded image per object, if not in the objects themselves.
        category_ids: what the source calls each label, if that is not the label itself: COCO's ids have gaps.
    """

    name: str
    dataset: datasets.IterableDataset
    image_column: str
    label_column: str | None
    class_names: tuple[str, ...] | None
    num_samples: int | None
    mask_column: str | None = None
    objects_column: str | None = None
    object_masks_column: str | None = None
    category_ids: tuple[int, ...] | None = None


def open_digit_scenes(
    split: str, image_size: int, digit_sizes: Sequence[int] = ()
) -> tuple[datasets.IterableDataset, int]:
    """
    The built-in scenes, squares of `image_size` pixels, and their number: 4,000 to train on, 400 to test.
    `digit_sizes`: smallest and largest digit in pixels, as in [`pvt_hf.data.digits.digit_scenes`]; empty for its own.
    """
    split = "test" if split == "validation" else split
    num_samples = 4000 if split == "train" else 400
    dataset = digit_scenes(
        split, image_size, image_size, digit_sizes=digit_sizes or None, num_shards=16, length=num_samples
    )
    return dataset, num_samples


def open_source(
    source: str,
    split: str,
    open_folder: Callable[[Path, str], tuple[datasets.IterableDataset, int | None]],
    load_kwargs: dict[str, Any],
) -> tuple[datasets.IterableDataset, int | None]:
    """
    The examples of a folder, by `open_folder(folder, split)`, or of a Hub id; and their number if it is known.

    Raises:
        FileNotFoundError: a path that is no folder, and what `open_folder` raises.
    """
    folder = Path(source)
    if folder.is_dir():
        dataset, num_samples = open_folder(folder, split)
    elif folder.exists() or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{source} is not a folder: give a folder of images, parquet files or tars.")
    else:
        try:
            dataset = datasets.load_dataset(source, split=split, streaming=True, **load_kwargs)
        except (ConnectionError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"There is no folder {source} here, and no data set of that name could be read from the Hub: {error}"
            ) from error
        split_info = (dataset.info.splits or {}).get(split)
        num_samples = split_info.num_examples if split_info is not None else None
    if dataset.features is None:  # a builder that declares none: looked up in its first examples
        dataset = dataset._resolve_features()
    for name, feature in dataset.features.items():
        if _is_plain_image(feature):
            dataset = dataset.cast_column(name, datasets.Image())
    return dataset, num_samples


def _is_plain_image(feature: Any) -> bool:
    """Files and paths as `datasets` stores images, in a file that another program wrote without its metadata."""
    return isinstance(feature, dict) and {name: getattr(feature[name], "dtype", None) for name in feature} == {
        "bytes": "binary",
        "path": "string",
    }


def find_image_column(features: datasets.Features, source: str) -> str:
    """The column of type image, or of these the one of that name. Raises a ValueError if there are others alone."""
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    raise ValueError(
        f"{source} has {f'the image columns {images}' if images else f'no image column among {list(features)}'}: "
        "name the one to read with image_column."
    )


def split_root(folder: Path, split: str) -> Path:
    """
    The sub-folder of a split; `folder` itself if it has none.

    Raises:
        FileNotFoundError: it has others, a train folder among them.
    """
    split_folders = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    known = [name for names in SPLIT_NAMES.values() for name in names if name in split_folders]
    root = next((split_folders[name] for name in SPLIT_NAMES.get(split, (split,)) if name in split_folders), None)
    # Without a train folder, "test" is as likely a class as a split.
    if root is None and any(name in split_folders for name in SPLIT_NAMES["train"]):
        raise FileNotFoundError(f"{folder} has no split {split!r}; its folders are {', '.join(known)}.")
    return root or folder


def open_archives(root: Path, split: str, by_name: bool) -> tuple[datasets.IterableDataset, int | None] | None:
    """
    The parquet files or webdataset tars below `root` and their number of examples if known; None if there are none.

    Args:
        by_name: whether the files' names tell to which split they belong.

    Raises:
        FileNotFoundError: none of the names is of this split.
        ValueError: a file cannot be opened.
    """
    for builder, pattern in (("parquet", "*.parquet"), ("webdataset", "*.tar")):
        files = sorted(root.rglob(pattern))
        if files:
            files = _files_of_split(files, split, by_name)
            try:
                dataset = datasets.load_dataset(
                    builder, data_files={split: [str(f) for f in files]}, split=split, streaming=True
                )
            except Exception as error:  # an empty or damaged archive, in the words of whatever library reads it
                raise ValueError(
                    f"{root}: the {builder} files ({files[0].name} ...) cannot be opened; perhaps the first of them is "
                    f"empty or damaged: {type(error).__name__}: {error}"
                ) from error
            if builder == "webdataset":
                return dataset, None
            return dataset.reshard(), _parquet_rows(files)
    return None


def _files_of_split(files: list[Path], split: str, by_name: bool) -> list[Path]:
    """Files whose names begin with a split's name (the Hub's layout) belong to it; without such names all are train."""
    if not by_name:
        return files
    all_names = tuple(name for names in SPLIT_NAMES.values() for name in names)
    if any(file.name.startswith(all_names) for file in files):
        chosen = [file for file in files if file.name.startswith(SPLIT_NAMES.get(split, (split,)))]
    else:
        chosen = files if split == "train" else []
    if not chosen:
        raise FileNotFoundError(f"No file of split {split!r} among {', '.join(file.name for file in files[:6])} ...")
    return chosen


def _parquet_rows(files: list[Path]) -> int:
    import pyarrow.parquet

    return sum(pyarrow.parquet.ParquetFile(file).metadata.num_rows for file in files)
