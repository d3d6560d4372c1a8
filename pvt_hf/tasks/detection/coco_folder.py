"""
A folder of images with COCO's annotations in one JSON file, as a stream of examples.

Each process reads the file once, before any worker starts, into an Arrow table of 0.8 times its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from ...data.log import warn_once
from ...data.streams import SPLIT_NAMES, Examples, encoded_image, split_folder
from .coco_file import CocoFile, read_coco_file
from .image_places import find_image_files
from .object_table import SharedTable, used_classes


# Names of an annotation file that lies beside the images of its split
FILE_NAMES = ("annotations.json", "_annotations.coco.json", "instances.json")


def find_coco_files(folder: Path, split: str) -> tuple[Path, list[Path]] | None:
    """
    The annotation file of a split, and the folders in which its images may lie; None if there is no such file.

    Raises:
        FileNotFoundError: the folder has annotations, but is not divided into splits.
    """
    names = SPLIT_NAMES.get(split, (split,))
    files = sorted((folder / "annotations").glob("*.json"))
    for prefix in ("instances_", ""):  # beside instances_train2017.json lies captions_train2017.json
        for file in files:
            part = file.stem.removeprefix(prefix)
            if file.stem.startswith(prefix) and part.startswith(names):
                folders = dict.fromkeys([part, *names])
                roots = [folder / name for name in folders] + [folder / "images" / name for name in folders]
                return file, [*roots, folder / "images", folder]
    root = split_folder(folder, split)
    found = next((root / name for name in FILE_NAMES if (root / name).is_file()), None)
    if found is None:
        files = [*root.glob("*.json"), *(root / "annotations").glob("*.json")]
        found = files[0] if len(files) == 1 and (root / "images").is_dir() else None
    if found is None:
        return None
    if root is folder and split != "train":
        raise FileNotFoundError(
            f"{folder} is not divided into splits, so it has no {split!r}: expected annotations/instances_SPLIT.json "
            "and a folder SPLIT of images, or SPLIT/annotations.json beside images; or hold out a share of the "
            "images in training."
        )
    return found, [root / "images", root, folder]


def open_coco_files(
    file: Path, image_folders: list[Path], keep_empty: bool, keep_unused_classes: bool = True
) -> Examples:
    """
    The examples ([`pvt_hf.tasks.detection.object_table.object_features`], images undecoded, one shard each). Labels
    number the categories in the order of their ids. What is left out, and classes without objects, are logged.

    Args:
        image_folders: where the images may be, the likeliest first.
        keep_empty: whether to keep images without objects to learn from.
        keep_unused_classes: whether to keep classes without objects.

    Raises:
        FileNotFoundError: none of the folders has any of the images.
        ValueError: see [`pvt_hf.tasks.detection.coco_file.read_coco_file`]; or no class has an object, and
            `keep_unused_classes` is off.
    """
    content = read_coco_file(file, keep_empty)
    try:
        image_files, lost = find_image_files(content.names, image_folders) if content.names else ([], [])
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{file}: {error}") from error
    _report(file, content, lost)
    categories = used_classes(str(file), content.categories, content.counts, keep_unused_classes)
    dataset = datasets.IterableDataset.from_generator(
        _read_rows,
        features=content.features,
        gen_kwargs={"files": image_files, "rows": list(range(len(image_files))), "table": content.table},
    )
    return Examples(dataset, len(image_files), tuple(categories.values()), tuple(categories))


def _report(file: Path, content: CocoFile, lost: list[str]) -> None:
    if content.strays:
        warn_once(f"{file}: {content.strays} annotation(s) left out: their image_id is that of no image in the file.")
    if lost:
        warn_once(f"{file}: the folders of {len(lost)} image(s) were not found, e.g. {', '.join(lost[:3])}.")
    unknown = [category for category in content.counts if category not in content.categories]
    if unknown:
        warn_once(
            f"{file}: {sum(content.counts[category] for category in unknown)} object(s) have a category_id that is not "
            f"among the categories: {', '.join(map(str, unknown[:5]))}. Their images cannot be used."
        )


def _read_rows(files: list[str], rows: list[int], table: SharedTable) -> Iterator[dict[str, Any]]:
    for file, row in zip(files, rows):
        yield {"image": encoded_image(file), **table.row(row)}
