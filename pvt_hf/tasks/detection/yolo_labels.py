"""
The label files of YOLO's layout: where they are, and what their lines mean.

A line is an object: a class number and the box (centre x, centre y, width, height) or the points of a polygon
(x1 y1 x2 y2 ...), as fractions of the upright image's width and height.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.folders import Finder, LeftOut, folded


FORMAT = "a class number and 4 numbers of a box (centre x, centre y, width, height) or the points of a polygon."
# Coordinates are rounded when they are written, so that they may lie slightly outside the image.
TOLERANCE = 0.01
# Files with a class name per line, of exports without data.yaml; labelling tools put them beside the label files.
NAME_FILES = ("classes.txt", "obj.names")
NUMBERS_SHOWN = 10


def label_file(image: Path) -> Path:
    """The label file of an image: in the folder `labels` that lies beside its folder `images`, or beside the image."""
    parts = list(image.with_suffix(".txt").parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if folders:
        parts[folders[-1]] = {"Images": "Labels", "IMAGES": "LABELS"}.get(parts[folders[-1]], "labels")
    return Path(*parts)


def leave_out_lone_labels(images: Sequence[Path], left_out: LeftOut) -> None:
    """Notes the label files, in the folders where those of `images` are, that have no image, in any split."""
    finder = Finder()
    for wanted, folder in {label_file(image).parent: image.parent for image in images}.items():
        labels = finder.folder(wanted)
        if labels is None or wanted == folder:  # beside images, a text file may be anything
            continue
        stems = {folded(Path(name).stem) for name in os.listdir(folder)}
        for file in map(Path, os.listdir(labels)):
            is_label = file.suffix.lower() == ".txt" and file.name.lower() not in NAME_FILES
            if is_label and folded(file.stem) not in stems:
                left_out.add("label files without an image", labels / file)


def read_labels(file: Path, names: Mapping[int | str, str], keypoints: bool) -> tuple[list[dict[str, Any]], str | None]:
    """
    Args:
        names: class names by number; empty if they are not known.
        keypoints: whether a box is followed by keypoints, which are not read.

    Returns:
        The objects: `category`, `box` (left, top, width, height) and `polygon` (or None), as fractions of the image.
        Or none, and what is wrong: the first line that is no object, and how many more there are.
    """
    objects, problems = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                objects.append(_read_line(line.strip(), names, keypoints))
            except ValueError as error:
                problems.append(f"{file}, line {number}: {error}")
    if not problems:
        return objects, None
    more = f" (and {len(problems) - 1} more line(s))" if len(problems) > 1 else ""
    return [], problems[0] + more


def _read_line(line: str, names: Mapping[int | str, str], keypoints: bool) -> dict[str, Any]:
    try:
        number, *values = (float(part) for part in line.split())
    except ValueError as error:
        raise ValueError(f"{line!r:.80}; expected numbers: {FORMAT}") from error
    if keypoints:
        values = values[:4]
    if not number.is_integer() or number < 0 or len(values) < 4 or len(values) == 5 or len(values) % 2:
        raise ValueError(f"{line!r:.80} with {len(values) + 1} number(s); expected {FORMAT}")
    if names and number not in names:
        raise ValueError(f"class {number:.0f}, but only {_shown([int(key) for key in names])} have names.")
    if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in values):  # NaN is not
        raise ValueError(f"{line!r:.80}; expected fractions of the image's width and height, from 0 to 1, not pixels.")
    if len(values) == 4:
        x, y, width, height = values
        if width < 0 or height < 0:
            raise ValueError(f"{line!r:.80}; width and height must not be negative.")
        return {"category": int(number), "box": [x - width / 2, y - height / 2, width, height], "polygon": None}
    left, top = min(values[::2]), min(values[1::2])
    box = [left, top, max(values[::2]) - left, max(values[1::2]) - top]
    return {"category": int(number), "box": box, "polygon": values}


def _shown(numbers: list[int]) -> str:
    """Ascending numbers, such as "0 to 5", or "0, 2, 5" if there are gaps."""
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:NUMBERS_SHOWN])) + " ..." * (len(numbers) > NUMBERS_SHOWN)
