"""
A folder of images with COCO's annotations in one JSON file, as a stream of examples.

Each process parses the file once, before any worker starts, into an Arrow table of 0.8 times its size, whose memory
forked workers share. (Python's objects are several times the file, and every worker would copy them bit by bit as it
counts references.) Polygons become texts as they are parsed: at its peak a process holds 4.7 times the size of the
file, with polygons as lists of numbers 9.3 times. (Files of 8 and 25 MB; by that, 2.1 GB for COCO's 450 MB.)
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ...data.streams import SPLIT_NAMES, split_root
from ...models.image_processing_coco import may_have_objects


# Names of a file that lies beside the images of its split
FILE_NAMES = ("annotations.json", "_annotations.coco.json", "instances.json")
# Images per piece of the table: the texts of one piece stay far below the 2 GB that Arrow's strings may have.
ROWS_PER_PIECE = 4096
# Files that are looked for before a folder counts as another one than that of the annotations
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
            "segmentation": datasets.List(datasets.Value("string")),  # JSON: polygons and run lengths have no one type
        },
    }
)


def find_coco_folder(folder: Path, split: str) -> tuple[Path, list[Path]] | None:
    """
    The annotation file of a split and the folders in which its images may lie; None if the folder has no such file.

    Raises:
        FileNotFoundError: the folder has files for other splits alone.
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
    root = split_root(folder, split)
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


def open_coco_folder(
    file: Path, image_folders: list[Path], keep_empty: bool
) -> tuple[datasets.IterableDataset, tuple[str, ...], tuple[int, ...], int]:
    """
    The examples (`FEATURES`, images undecoded, one shard each), the names of the categories in the order of their ids,
    these ids, and the number of examples. Annotations of images that the file does not list are left out.

    Args:
        image_folders: the first that has some of the images is taken.

    Raises:
        FileNotFoundError: none of them has.
        ValueError: the file is no JSON of COCO's kind.
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
    return dataset, tuple(categories[category] for category in ids), tuple(ids), len(names)


def _read_file(file: Path, keep_empty: bool) -> tuple[pa.Table, list[str], dict[int, str]]:
    """The images' facts and objects, their file names, and the categories; Python's objects go with this frame."""
    try:
        with file.open(encoding="utf-8-sig") as opened:
            content = json.load(opened, object_hook=_with_text)
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
                {**_facts(image), **_lists(annotations[image["id"]])}
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
    """An Arrow table that copies of a stream share: `deepcopy` would copy its memory, once per epoch and worker."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __deepcopy__(self, memo: dict) -> SharedTable:
        return self

    def row(self, index: int) -> dict[str, Any]:
        return self.table.slice(index, 1).to_pylist()[0]


def _read_rows(files: list[str], rows: list[int], table: SharedTable) -> Iterator[dict[str, Any]]:
    for file, row in zip(files, rows):
        yield {"image": {"path": file, "bytes": None}, **table.row(row)}


def _schema() -> pa.Schema:
    schema = FEATURES.arrow_schema.remove_metadata()
    return schema.remove(schema.get_field_index("image"))


def _facts(image: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": image["id"], "width": image.get("width"), "height": image.get("height")}


def _lists(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "objects": {
            "bbox": [annotation.get("bbox") for annotation in annotations],
            "category": [annotation.get("category_id") for annotation in annotations],
            "area": [annotation.get("area") for annotation in annotations],
            "iscrowd": [int(annotation.get("iscrowd") or 0) for annotation in annotations],
            "segmentation": [annotation.get("segmentation") for annotation in annotations],
        }
    }


def _with_text(item: dict[str, Any]) -> dict[str, Any]:
    """An object of the file as soon as it is parsed: with its segmentation as text, or None if that is empty."""
    if "segmentation" in item:
        item["segmentation"] = json.dumps(item["segmentation"]) if item["segmentation"] else None
    return item
