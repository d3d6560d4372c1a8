"""
A folder of images with COCO's annotations in one JSON file, as a stream of examples.

Each process parses the file once, before any worker starts, into an Arrow table of 0.8 times its size. Forked workers
share the table's memory. (Python objects would take several times the file, and every worker would end up with a copy,
because counting references writes to them.) Polygons are turned into text while they are parsed: at its peak a process
holds 4.7 times the size of the file, and 9.3 times with polygons as lists of numbers. (Measured on files of 8 and 25
MB; that makes 2.1 GB for COCO's 450 MB.)
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

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
from ...data.streams import Examples, encoded_image
from ...models.image_processing_coco import may_have_objects


# Names of an annotation file that lies beside the images of its split
FILE_NAMES = ("annotations.json", "_annotations.coco.json", "instances.json", "instances_default.json")
ANNOTATION_WORDS = ("", "annotations", "annotation", "labels", "coco", "annotationscoco", "cocoannotations")
ANNOTATION_FOLDERS = ("annotations", "annotation", "anns", "ann", "labels")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "data", "jpegimages")
# Beside instances_train2017.json, COCO has files without objects, or of other tasks.
OTHER_ANNOTATIONS = ("captions", "person_keypoints", "image_info", "panoptic", "stuff")
# Images per piece of the table: an Arrow string column holds at most 2 GB, and the text of a piece stays far below.
ROWS_PER_PIECE = 4096
# Image files that are looked for before a folder counts as the wrong one
FILES_TRIED = 100

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "image_id": datasets.Value("int64"),
        "width": datasets.Value("int64"),
        "height": datasets.Value("int64"),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
            "category": datasets.List(datasets.Value("int64")),  # COCO's ids
            "area": datasets.List(datasets.Value("float64")),
            "iscrowd": datasets.List(datasets.Value("int64")),
            "segmentation": datasets.List(datasets.Value("string")),  # JSON: polygons and RLE have no common type
        },
    }
)


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
            "images in training."
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


def open_coco_files(file: Path, image_folders: list[Path], keep_empty: bool) -> Examples:
    """
    The examples (`FEATURES`, images undecoded, one shard each). Labels number the categories in the order of their ids.
    Annotations of images that the file does not list are ignored.

    Args:
        image_folders: the first one that has some of the images is used.
        keep_empty: whether to keep images without objects to learn from.

    Raises:
        FileNotFoundError: none of the folders has any of the images.
        ValueError: the file is not COCO's JSON.
    """
    table, names, categories = _read_file(file, keep_empty)
    root = next((path for path in image_folders if any((path / name).is_file() for name in names[:FILES_TRIED])), None)
    if root is None:
        raise FileNotFoundError(
            f"None of the {len(names)} image(s) of {file}, {', '.join(names[:3])} ..., lies in any of "
            f"{', '.join(str(path) for path in image_folders if path.is_dir()) or image_folders[0]}."
        )
    dataset = datasets.IterableDataset.from_generator(
        _read_rows,
        features=FEATURES,
        gen_kwargs={
            "files": [str(root / name) for name in names],
            "rows": list(range(len(names))),
            "table": SharedTable(table),
        },
    )
    ids = sorted(categories)
    return Examples(dataset, len(names), tuple(categories[category] for category in ids), tuple(ids))


def _read_file(file: Path, keep_empty: bool) -> tuple[pa.Table, list[str], dict[int, str]]:
    """The table of images and objects, the file names, and the categories' names by id."""
    try:
        with file.open(encoding="utf-8-sig") as opened:
            content = json.load(opened, object_hook=_segmentation_to_text)
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        annotations = defaultdict(list)
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
        images = [image for image in content["images"] if keep_empty or may_have_objects(annotations[image["id"]])]
        del content
        names = [image["file_name"] for image in images]
        pieces = []
        for start in range(0, len(images), ROWS_PER_PIECE):
            rows = [
                {**_image_facts(image), **_object_lists(annotations[image["id"]])}
                for image in images[start : start + ROWS_PER_PIECE]
            ]
            pieces.append(pa.Table.from_pylist(rows, schema=_schema()))
        return pa.concat_tables(pieces), names, categories
    except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise ValueError(
            f"{file} cannot be read as COCO's annotations of objects, a JSON file with images, annotations and "
            f"categories: {type(error).__name__}: {error}"
        ) from error


class SharedTable:
    """An Arrow table that is not copied with its stream, which is copied once per epoch and worker."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __deepcopy__(self, memo: dict) -> SharedTable:
        return self

    def row(self, index: int) -> dict[str, Any]:
        return self.table.slice(index, 1).to_pylist()[0]


def _read_rows(files: list[str], rows: list[int], table: SharedTable) -> Iterator[dict[str, Any]]:
    for file, row in zip(files, rows):
        yield {"image": encoded_image(file), **table.row(row)}


def _schema() -> pa.Schema:
    schema = FEATURES.arrow_schema.remove_metadata()
    return schema.remove(schema.get_field_index("image"))


def _image_facts(image: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": image["id"], "width": image.get("width"), "height": image.get("height")}


def _object_lists(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "objects": {
            "bbox": [annotation.get("bbox") for annotation in annotations],
            "category": [annotation.get("category_id") for annotation in annotations],
            "area": [annotation.get("area") for annotation in annotations],
            "iscrowd": [int(annotation.get("iscrowd") or 0) for annotation in annotations],
            "segmentation": [annotation.get("segmentation") for annotation in annotations],
        }
    }


def _segmentation_to_text(item: dict[str, Any]) -> dict[str, Any]:
    """Called with every JSON object as it is parsed. Turns a segmentation into text, an empty one into None."""
    if "segmentation" in item:
        item["segmentation"] = json.dumps(item["segmentation"]) if item["segmentation"] else None
    return item
