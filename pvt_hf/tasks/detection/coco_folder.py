"""
A folder of images with COCO's annotations in one JSON file, as a stream of examples.

Each process reads the file once, before any worker starts, into an Arrow table of 0.8 times its size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from ...data.folders import (
    LeftOut,
    child,
    find_split,
    find_split_file,
    list_folder,
    split_folder,
    split_in,
    split_of,
    subfolders,
)
from ...data.log import warn_once
from ...data.streams import Examples, encoded_image
from .coco_file import CocoFile, read_coco_file
from .image_places import find_image_files
from .object_table import SharedTable, used_classes


# Names of an annotation file that lies beside the images of its split
FILE_NAMES = ("annotations.json", "_annotations.coco.json", "instances.json", "instances_default.json")
ANNOTATION_WORDS = ("", "annotations", "annotation", "labels", "coco", "annotationscoco", "cocoannotations")
ANNOTATION_FOLDERS = ("annotations", "annotation", "anns", "ann", "labels")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "data", "jpegimages")
# Beside instances_train2017.json, COCO has files without objects, or of other tasks.
OTHER_ANNOTATIONS = ("captions", "person_keypoints", "image_info", "panoptic", "stuff")


def find_coco_files(folder: Path, split: str, left_out: LeftOut) -> tuple[Path, list[Path]] | None:
    """
    The annotation file of a split, and the folders in which its images may lie, the likeliest first; None if there is
    no such file. The layouts are listed in `data/folders.py`.

    Raises:
        FileNotFoundError: the folder has annotations, but none for this split.
        ValueError: two files or folders are equally good for the split.
    """
    files = _annotation_files(folder, left_out)
    # Beside the images may lie other JSON files, such as test_results.json.
    of_splits = [file for file in files if file.parent != folder or split_of(_part(file), ANNOTATION_WORDS)]
    of_splits = [file for file in of_splits if split_in(_part(file)) or _part(file).casefold() == split.casefold()]
    file = find_split_file(of_splits, split, _part)
    if file is not None:
        return file, _image_folders(folder, [_part(file), split], left_out)
    if of_splits:
        raise FileNotFoundError(
            f"{folder} has no annotations for the split {split!r}; it has {', '.join(path.name for path in of_splits)}."
        )
    root = split_folder(folder, split, left_out)
    if root != folder:
        file = _only_file(_annotation_files(root, left_out))
        folders = [*_image_folders(root, [], left_out), *_image_folders(folder, [split], left_out)]
        return (file, folders) if file is not None else None
    file = _only_file(files)
    folders = _image_folders(folder, [_part(file)] if file else [], left_out)
    if file is None or (file.name.casefold() not in FILE_NAMES and len(folders) == 1):
        return None
    if split != "train":
        raise FileNotFoundError(
            f"{folder} is not divided into splits, so it has no {split!r}: expected annotations/instances_SPLIT.json "
            "and a folder SPLIT of images, or SPLIT/annotations.json beside images; or hold out a share of the "
            "images in training (--eval_share 0.2)."
        )
    return file, folders


def _annotation_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """The JSON files in a folder and in its folder of annotations; only those of instances, if there are any."""
    annotations = child(folder, ANNOTATION_FOLDERS, left_out)
    found = [file for place in (annotations, folder) if place for file in list_folder(place, left_out)[1]]
    files = [file for file in found if file.suffix.lower() == ".json"]
    files = [file for file in files if not file.name.casefold().startswith(OTHER_ANNOTATIONS)]
    return [file for file in files if file.stem.casefold().startswith("instances")] or files


def _part(file: Path) -> str:
    """What a file of annotations is of: train2017 of instances_train2017.json."""
    return re.sub(r"^instances[_-]?", "", file.stem, flags=re.IGNORECASE)


def _only_file(files: list[Path]) -> Path | None:
    """The file with the usual name, or the only one."""
    named = [file for name in FILE_NAMES for file in files if file.name.casefold() == name]
    return named[0] if named else files[0] if len(files) == 1 else None


def _image_folders(folder: Path, parts: list[str], left_out: LeftOut) -> list[Path]:
    """The folders named after a part of the data, here or in the folder of images; the folder of images; this one."""
    images = child(folder, IMAGE_FOLDERS, left_out)
    places = [place for place in (folder, images) if place is not None]
    of_parts = [find_split(subfolders(place, left_out), part) for place in places for part in parts]
    return list(dict.fromkeys(path for path in (*of_parts, images, folder) if path is not None))


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
    _report(file, content, lost, image_files)
    categories = used_classes(str(file), content.categories, content.counts, keep_unused_classes)
    dataset = datasets.IterableDataset.from_generator(
        _read_rows,
        features=content.features,
        gen_kwargs={"files": image_files, "rows": list(range(len(image_files))), "table": content.table},
    )
    return Examples(dataset, len(image_files), tuple(categories.values()), tuple(categories))


def _report(file: Path, content: CocoFile, lost: list[str], image_files: list[str]) -> None:
    if content.strays:
        warn_once(f"{file}: {content.strays} annotation(s) left out: their image_id is that of no image in the file.")
    if lost:
        warn_once(f"{file}: the folders of {len(lost)} image(s) were not found, e.g. {', '.join(lost[:3])}.")
    repeated = [name for name, count in Counter(image_files).items() if count > 1]
    if repeated:
        warn_once(
            f"{file}: {len(repeated)} file(s) belong to several images, e.g. {', '.join(repeated[:3])}, each "
            "with its own objects. If they are one image, give all its annotations the same image_id."
        )
    unknown = [category for category in content.counts if category not in content.categories]
    if unknown:
        warn_once(
            f"{file}: {sum(content.counts[category] for category in unknown)} object(s) have a category_id that is not "
            f"among the categories: {', '.join(map(str, unknown[:5]))}. Their images cannot be used."
        )


def _read_rows(files: list[str], rows: list[int], table: SharedTable) -> Iterator[dict[str, Any]]:
    for file, row in zip(files, rows):
        yield {"image": encoded_image(file), **table.row(row)}
