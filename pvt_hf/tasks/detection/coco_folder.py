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
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ...data.streams import SPLIT_NAMES, Examples, encoded_image, split_folder
from ...models.image_processing_coco import may_have_objects


# Names of an annotation file that lies beside the images of its split
FILE_NAMES = ("annotations.json", "_annotations.coco.json", "instances.json")
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
