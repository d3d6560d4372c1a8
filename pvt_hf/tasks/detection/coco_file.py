"""
Reads a JSON file of COCO's object annotations, including the variants that other tools export.

Polygons become text while the file is parsed. At its peak a process then holds 4.7 times the size of the file, instead
of 9.3 times with lists of numbers. (Measured on files of 8 and 25 MB; that makes 2.1 GB for COCO's 450 MB.)
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ...data.log import warn_once
from ...data.values import read_id, read_number, read_side
from ...models.image_processing_coco import may_have_objects
from .object_table import SharedTable, make_table, object_features


PARTS = ("images", "annotations", "categories")
MERGED = "If files were merged, renumber the ids, and give each category name one id."
# Where an image's name is, the likeliest first. COCO's own URLs end in the file's name.
NAME_FIELDS = ("file_name", "coco_url", "url", "flickr_url")


@dataclass(frozen=True)
class CocoFile:
    """
    The content of an annotation file.

    Attributes:
        names: file names of the images, as written in the file.
        table: image ids, sizes and objects, in the same order.
        features: of the examples, with an image.
        categories: names by id, in the order of the ids.
        counts: objects by category id, crowds included.
        strays: annotations of images that the file does not list. They are left out.
    """

    names: list[str]
    table: SharedTable
    features: datasets.Features
    categories: dict[int | str, str]
    counts: Counter[int | str]
    strays: int


def read_coco_file(file: Path, keep_empty: bool) -> CocoFile:
    """
    Reads an annotation file. Ids are compared as in [`pvt_hf.data.values.read_id`], so that 7 and "7" are the same.

    Args:
        keep_empty: whether to keep images without objects to learn from.

    Raises:
        ValueError: not COCO's JSON; an id that two images, two annotations or two categories have, or two categories of
            one name; a field that cannot be read. The message names the file, the ids and the images.
    """
    content = _parse(file)
    try:
        categories = _read_categories(content["categories"])
        images = _by_id(content["images"])
        annotations, strays = _group(content["annotations"], images)
        if annotations and not categories:
            raise ValueError("the list of categories is empty, but there are annotations: list every class")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    ignored = sum(bool(one.get("ignore")) and not one["iscrowd"] for objects in annotations.values() for one in objects)
    if ignored:
        warn_once(
            f"{file}: {ignored} object(s) have a field `ignore`. pycocotools does not read it, and neither do training "
            "and evaluation here: they count as any other object. To leave them out, set iscrowd to 1."
        )
    del content
    counts = Counter(annotation["category_id"] for objects in annotations.values() for annotation in objects)
    if not keep_empty:
        images = {key: image for key, image in images.items() if may_have_objects(annotations.get(key))}
    text_ids = any(isinstance(image["id"], str) for image in images.values())
    text_categories = any(isinstance(category, str) for category in (*categories, *counts))
    features = object_features(str if text_ids else int, str if text_categories else int)
    if text_categories:
        categories = {str(key): name for key, name in categories.items()}
        counts = Counter({str(key): count for key, count in counts.items()})
    rows = _rows(images, annotations, text_ids, text_categories)
    return CocoFile(
        names=[_image_name(image) for image in images.values()],
        table=make_table(rows, features),
        features=features,
        categories=categories,
        counts=counts,
        strays=strays,
    )


def _parse(file: Path) -> dict[str, list[dict[str, Any]]]:
    expected = f"a JSON file with {', '.join(PARTS[:-1])} and {PARTS[-1]}, each a list of objects in braces"
    try:
        with file.open(encoding="utf-8-sig") as opened:
            content = json.load(opened, object_hook=_segmentation_to_text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read as COCO's annotations of objects, {expected}: {type(error).__name__}: {error}"
        ) from error
    for part in PARTS:
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f"{file} cannot be read as COCO's annotations of objects, {expected}: "
                f"{'it has no' if entries is None else 'wrong'} {part}"
            )
    return content


def _segmentation_to_text(item: dict[str, Any]) -> dict[str, Any]:
    """Called with every JSON object as it is parsed. Turns a segmentation into text, an empty one into None."""
    if "segmentation" in item:
        item["segmentation"] = json.dumps(item["segmentation"]) if item["segmentation"] else None
    return item


def _read_categories(entries: list[dict[str, Any]]) -> dict[int | str, str]:
    categories: dict[int | str, str] = {}
    ids_by_name: dict[str, int | str] = {}
    for entry in entries:
        if entry.get("name") is None:
            raise ValueError(f"the category {entry!r:.80} has no name")
        key, name = _field(read_id, entry, "id", f"category {entry['name']!r}"), str(entry["name"])
        if key in categories:
            raise ValueError(f"the categories {categories[key]!r} and {name!r} have the same id {key}. {MERGED}")
        if name in ids_by_name:
            raise ValueError(f"the categories {ids_by_name[name]} and {key} have the same name {name!r}. {MERGED}")
        categories[key], ids_by_name[name] = name, key
    return dict(sorted(categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _by_id(entries: list[dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    images: dict[int | str, dict[str, Any]] = {}
    twice = []
    for image in entries:
        name = _image_name(image)
        key = _field(read_id, image, "id", f"image {name}")
        if not isinstance(image["id"], str):  # results of an evaluation have the ids of the file: text stays text
            image["id"] = key
        if key in images:
            twice.append((key, _image_name(images[key]), name))
        images.setdefault(key, image)
    if twice:
        key, first, second = twice[0]
        raise ValueError(
            f"two images, {first} and {second}, have the same id {key!r}, so it is unclear which of them an annotation "
            f"belongs to; {len(twice)} id(s) occur more than once. {MERGED}"
        )
    return images


def _image_name(image: dict[str, Any]) -> str:
    name = next((image[field] for field in NAME_FIELDS if image.get(field)), None)
    if name is None:
        raise ValueError(f"the image {image!r:.80} has no {' or '.join(NAME_FIELDS[:2])}")
    return str(name)


def _group(
    entries: list[dict[str, Any]], images: dict[int | str, dict[str, Any]]
) -> tuple[dict[int | str, list[dict[str, Any]]], int]:
    """The annotations by image, their fields read; and how many belong to no image."""
    groups: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    owners: dict[int | str, int | str] = {}
    strays = 0
    for number, entry in enumerate(entries):
        where = f"annotation {entry.get('id', f'at index {number}')}"
        key = _field(read_id, entry, "image_id", where)
        if key not in images:
            strays += 1
            continue
        where = f"{where} of {_image_name(images[key])}"
        if entry.get("id") is not None:
            own = _field(read_id, entry, "id", where)
            if own in owners:
                names = " and ".join(_image_name(images[owner]) for owner in (owners[own], key))
                raise ValueError(f"two objects, in {names}, have the same annotation id {own!r}. {MERGED}")
            owners[own] = key
        for name, read in READ.items():  # in place, because there may be a million of them
            entry[name] = _field(read, entry, name, where)
        groups[key].append(entry)
    return groups, strays


def _field(read: Any, entry: dict[str, Any], name: str, where: str) -> Any:
    try:
        return read(entry.get(name))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {name}: {error}") from error


def _as_text(ids: list[int | str | None]) -> list[str | None]:
    return [None if own is None else str(own) for own in ids]


def _read_category(value: Any) -> int | str | None:
    return None if value is None else read_id(value)


def _read_box(box: Any) -> list[float | None] | None:
    """Four numbers, also as text; None if there is none, to be computed from the polygon."""
    if box is None or box == []:
        return None
    if not isinstance(box, list):
        raise ValueError(f"{box!r:.80}; expected [x, y, width, height] in pixels")
    return [None if number is None else float(number) for number in box]


def _read_crowd(value: Any) -> int:
    return int(bool(read_number(value)))


READ = {"bbox": _read_box, "category_id": _read_category, "area": read_number, "iscrowd": _read_crowd}


def _rows(
    images: dict[int | str, dict[str, Any]],
    annotations: dict[int | str, list[dict[str, Any]]],
    text_ids: bool,
    text_categories: bool,
) -> Iterator[dict[str, Any]]:
    for key, image in images.items():
        objects = annotations.pop(key, [])
        categories = [annotation["category_id"] for annotation in objects]
        yield {
            "image_id": str(image["id"]) if text_ids else image["id"],
            "width": read_side(image.get("width")),
            "height": read_side(image.get("height")),
            "objects": {
                "bbox": [annotation["bbox"] for annotation in objects],
                "category": _as_text(categories) if text_categories else categories,
                "area": [annotation["area"] for annotation in objects],
                "iscrowd": [annotation["iscrowd"] for annotation in objects],
                "segmentation": [annotation.get("segmentation") for annotation in objects],
            },
        }
