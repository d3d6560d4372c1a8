"""
Images and their objects as an Arrow table, which a folder with annotations is read into once per process.

Forked workers share the table's memory. (Python objects would take several times the size of the annotation file, and
every worker would end up with a copy, because counting references writes to them.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import datasets
import pyarrow as pa

from ...data.log import warn_once


# Images per piece of the table: an Arrow string column holds at most 2 GB, and the text of a piece stays far below.
ROWS_PER_PIECE = 4096


def object_features(image_id: type = int, category: type = int) -> datasets.Features:
    """The columns of images and objects. Ids are `int` (64 bits) or `str`, boxes [x, y, width, height] in pixels."""
    ids = {int: datasets.Value("int64"), str: datasets.Value("string")}
    return datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": ids[image_id],
            "width": datasets.Value("int64"),
            "height": datasets.Value("int64"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
                "category": datasets.List(ids[category]),
                "area": datasets.List(datasets.Value("float64")),
                "iscrowd": datasets.List(datasets.Value("int64")),
                "segmentation": datasets.List(datasets.Value("string")),  # JSON: polygons and RLE have no common type
            },
        }
    )


class SharedTable:
    """An Arrow table that is not copied with its stream, which is copied once per epoch and worker."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __deepcopy__(self, memo: dict) -> SharedTable:
        return self

    def row(self, index: int) -> dict[str, Any]:
        return self.table.slice(index, 1).to_pylist()[0]


def make_table(rows: Iterable[dict[str, Any]], features: datasets.Features) -> SharedTable:
    """A table of rows, which have all columns of `features` but the image."""
    schema = features.arrow_schema.remove_metadata()
    schema = schema.remove(schema.get_field_index("image"))
    remaining: Iterator[dict[str, Any]] = iter(rows)
    pieces = [schema.empty_table()]
    while piece := list(islice(remaining, ROWS_PER_PIECE)):
        pieces.append(pa.Table.from_pylist(piece, schema=schema))
    return SharedTable(pa.concat_tables(pieces))


def used_classes(
    source: str, categories: dict[int | str, str], counts: Mapping[int | str, int], keep_unused: bool
) -> dict[int | str, str]:
    """
    The categories (names by id), with or without those that have no objects. The log names these in either case.
    (Roboflow exports a category 0 that stands for the whole data set and has no objects.)

    Args:
        counts: objects by category.

    Raises:
        ValueError: no category would be left.
    """
    unused = [name for key, name in categories.items() if not counts.get(key)]
    if not unused:
        return categories
    used = {key: name for key, name in categories.items() if counts.get(key)}
    shown = ", ".join(unused[:10]) + " ..." * (len(unused) > 10)
    if keep_unused:
        hint = "kept; training leaves them out with --no_keep_unused_classes"
        warn_once(f"{source}: {len(unused)} of {len(categories)} classes have no objects ({shown}): {hint}.")
        return categories
    if not used:
        raise ValueError(f"{source}: none of the {len(categories)} classes has an object ({shown}).")
    warn_once(f"{source}: {len(unused)} of {len(categories)} classes have no objects and are left out ({shown}).")
    return used
