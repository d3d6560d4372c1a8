"""
A folder in YOLO's layout, as Ultralytics, Roboflow and labelling tools write it, as a stream of examples.

    data.yaml              names: class names; train, val, test: folders of images, lists of them, or text files with a
                           path per line; path: the folder that these are relative to
    images/train/a.jpg     labels/train/a.txt; also train/images/a.jpg and train/labels/a.txt, or a.txt beside a.jpg

A label file (`yolo_labels.py`) has a line per object. No file means no objects.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import yaml
from PIL import ExifTags, Image

from ...data.folders import (
    SPLIT_NAMES,
    Finder,
    LeftOut,
    child,
    files_below,
    find_split,
    known_split,
    readable_images,
    split_of,
    subfolders,
)
from ...data.log import warn_once
from ...data.samples import PROBLEM_COLUMN
from ...data.streams import Examples, encoded_image
from ...models.image_processing_masks import coco_mask, segmentation_to_rle
from .image_places import find_image_files
from .object_table import SharedTable, make_table, object_features, used_classes
from .yolo_labels import NAME_FILES, label_file, leave_out_lone_labels, read_labels


# Values that stand for a missing entry of the YAML file
NOTHING: tuple[Any, ...] = ("", "null", "~", "None", [], {})


@dataclass(frozen=True)
class YoloSplit:
    """
    The files of a split.

    Attributes:
        root: the folder of the data set.
        images: image files.
        names: class names by number; empty if they are not known.
        keypoints: whether a box is followed by keypoints, which are not read.
    """

    root: Path
    images: list[Path]
    names: dict[int | str, str]
    keypoints: bool = False


def find_yolo_data(folder: Path) -> Path | None:
    """The YAML file of a data set in YOLO's layout, which has `names` and a split; None if there is none."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in (".yaml", ".yml")]
    files.sort(key=lambda file: (file.stem.lower() != "data", file.name))
    return next((file for file in files if _read_yaml(file) is not None), None)


def read_yolo_data(file: Path, split: str, left_out: LeftOut) -> YoloSplit:
    """
    The split of a data set with a YAML file.

    Raises:
        FileNotFoundError: the file does not name the split, or its images are not there.
        ValueError: not the YAML file of a data set; `names` is neither a list nor numbers with names, a name occurs
            twice, or there are not `nc` of them.
    """
    content = _read_yaml(file)
    if content is None:
        raise ValueError(f"{file} does not describe a data set: expected YAML with names and train, val or test.")
    aliases = dict.fromkeys([split, *SPLIT_NAMES.get(known_split(split) or "", ())])
    entry = next((content[name] for name in aliases if content.get(name)), None)
    if entry is None:
        there = [name for names in SPLIT_NAMES.values() for name in names if content.get(name)]
        key = "val" if known_split(split) == "validation" else split  # as Ultralytics reads it
        raise FileNotFoundError(
            f"{file} names no images for {split!r}; its splits are {', '.join(there)}. Add a line '{key}: FOLDER', or "
            "hold out a share of the images in training (--eval_share 0.2)."
        )
    images: dict[Path, None] = {}
    for part in entry if isinstance(entry, list) else [entry]:
        images |= dict.fromkeys(_images_of(part, file, content.get("path"), left_out))
    leave_out_lone_labels(list(images), left_out)
    names = _read_names(file, content["names"])
    nc = str(content.get("nc", ""))
    if nc.isdigit() and int(nc) not in (len(names), max(map(int, names), default=-1) + 1):  # it may count gaps
        raise ValueError(f"{file}: nc is {nc}, but {len(names)} classes have names. Correct one of the two.")
    return YoloSplit(file.parent, list(images), names, "kpt_shape" in content)


def find_class_list(folder: Path) -> Path | None:
    """The file with a class name per line of a data set without a YAML file; None if there is none."""
    found = (Finder().file(folder / name) for name in NAME_FILES)
    return next((file for file in found if file is not None and file.is_file()), None)


def find_yolo_folders(folder: Path, split: str, left_out: LeftOut) -> YoloSplit | None:
    """A split of a data set without a YAML file: `images` and `labels`, or folders named after splits in them."""
    images, labels = child(folder, ("images",), left_out), child(folder, ("labels",), left_out)
    if images is not None and labels is not None:
        parts = subfolders(images, left_out)
        found = find_split(parts, split)
        if found is None and split == "train" and not any(split_of(part.name) for part in parts):
            found = images
    else:
        root = find_split(subfolders(folder, left_out), split)
        found = root and child(root, ("images",), left_out)
        labels = root and child(root, ("labels",), left_out)
    if found is None or labels is None:
        return None
    file = find_class_list(folder)
    names = _read_names(file, file.read_text(encoding="utf-8-sig").split("\n")) if file else {}
    files = _image_files(found, left_out)
    leave_out_lone_labels(files, left_out)
    return YoloSplit(folder, files, names)


def _image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """The images below a folder; labels may lie beside them."""
    return readable_images([file for file in files_below(folder, left_out) if file.suffix.lower() != ".txt"], left_out)


def open_yolo(found: YoloSplit, keep_empty: bool, keep_unused_classes: bool = True) -> Examples:
    """
    The examples ([`pvt_hf.tasks.detection.object_table.object_features`], images undecoded, one shard each). An image's
    id is its path below the data set's folder. One whose label file has a line that is no object, or coordinates that
    are not fractions of the image, has the file, the line and the reason in the column PROBLEM_COLUMN.

    Args:
        keep_empty: whether to keep images without objects.
        keep_unused_classes: whether to keep classes without objects. They are named in the log in either case.

    Raises:
        FileNotFoundError: there are no images, or no image has a label file.
        ValueError: no class would be left.
    """
    if not found.images:
        raise FileNotFoundError(f"{found.root}: the split has no images.")
    rows, files, counts = [], [], Counter[int | str]()
    missing = repeated = 0
    finder = Finder()
    for image in found.images:
        labels = finder.file(label_file(image))
        missing += labels is None
        objects, problem = read_labels(labels, found.names, found.keypoints) if labels is not None else ([], None)
        different = list({json.dumps(entry): entry for entry in objects}.values())
        repeated += len(objects) - len(different)
        counts.update(entry["category"] for entry in different)
        if different or problem or keep_empty:
            files.append(str(image))
            rows.append({**_to_row(_image_id(image, found.root), different), PROBLEM_COLUMN: problem})
    if missing == len(found.images):
        expected = label_file(found.images[0])
        there = "such as" if finder.folder(expected.parent) else f"and there is no folder {expected.parent} for"
        raise FileNotFoundError(f"{found.root}: none of the {missing} images has a label file, {there} {expected}.")
    if missing:
        warn_once(f"{found.root}: {missing} of {len(found.images)} images have no label file, so no objects.")
    if repeated:
        warn_once(f"{found.root}: {repeated} line(s) of label files left out that repeat another one.")
    names = used_classes(str(found.root), found.names, counts, keep_unused_classes)
    features = datasets.Features({**object_features(image_id=str), PROBLEM_COLUMN: datasets.Value("string")})
    dataset = datasets.IterableDataset.from_generator(
        _read_rows,
        features=features,
        gen_kwargs={"files": files, "rows": list(range(len(files))), "table": make_table(rows, features)},
    )
    return Examples(dataset, len(files), tuple(names.values()) or None, tuple(names) or None)


# The YAML file


def _read_yaml(file: Path) -> dict[str, Any] | None:
    """
    The content, if it is a data set's. Every value is text: YAML would read a class "no" as False.

    Raises:
        ValueError: a data.yaml that is not YAML.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError) as error:
        if file.stem.lower() == "data":
            raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
        return None
    if not isinstance(content, dict):
        return None
    content = {key: value for key, value in content.items() if value not in NOTHING}
    splits = {name for names in SPLIT_NAMES.values() for name in names}
    return content if "names" in content and splits & content.keys() else None


def _read_names(file: Path, names: Any) -> dict[int | str, str]:
    by_number: dict[int | str, str]
    if isinstance(names, dict) and all(str(key).strip().isdigit() for key in names):
        by_number = {int(key): str(name).strip() for key, name in sorted(names.items(), key=lambda item: int(item[0]))}
    elif isinstance(names, list):
        by_number = {number: str(name).strip() for number, name in enumerate(names) if str(name).strip()}
    else:
        raise ValueError(f"{file}: names {names!r:.80}; expected a list of class names, or numbers with names.")
    twice = [name for name, count in Counter(by_number.values()).items() if count > 1]
    if twice:
        numbers = [number for number, name in by_number.items() if name == twice[0]]
        raise ValueError(f"{file}: the classes {', '.join(map(str, numbers))} have the same name {twice[0]!r}.")
    return by_number


def _images_of(entry: Any, file: Path, path: Any, left_out: LeftOut) -> list[Path]:
    """
    The images that an entry of the YAML file names. It is relative to `path`, or to the file's folder. Roboflow writes
    ../train/images for train/images beside the file.
    """
    entry = str(entry).strip().replace("\\", "/")
    bases = [file.parent / str(path), Path(path)] if path else []
    for base in [*bases, file.parent]:
        for place in (base / entry, base / entry.removeprefix("../")):
            if bases and base not in bases and place.exists():
                warn_once(f"{file}: {entry} is not in its 'path', {path}; {place} is read.")
            if place.is_dir():
                return _image_files(place, left_out)
            if place.is_file() and place.suffix == ".txt":
                lines = [line.strip() for line in place.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
                return [Path(path) for path in find_image_files(lines, [place.parent, base])[0]] if lines else []
    elsewhere = bases and bases[0] != file.parent
    raise FileNotFoundError(
        f"{file}: {entry} is neither a folder of images nor a text file with their paths, in {file.parent}"
        f"{f' or its path, {path}' if elsewhere else ''}: correct the entry{' or the path' if elsewhere else ''}."
    )


# Rows


def _image_id(image: Path, root: Path) -> str:
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else image.as_posix()


def _to_row(image_id: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table, with boxes and polygons as fractions, because the image's size is not known."""
    polygons = [entry["polygon"] for entry in objects]
    return {
        "image_id": image_id,
        "width": None,
        "height": None,
        "objects": {
            "bbox": [entry["box"] for entry in objects],
            "category": [entry["category"] for entry in objects],
            "area": [None] * len(objects),
            "iscrowd": [0] * len(objects),
            "segmentation": [None if polygon is None else json.dumps(polygon) for polygon in polygons],
        },
    }


# Examples


def _read_rows(files: list[str], rows: list[int], table: SharedTable) -> Iterator[dict[str, Any]]:
    for file, row in zip(files, rows):
        example = {"image": encoded_image(file), **table.row(row)}
        size = _upright_size(file)
        if size is not None:
            _scale(example, *size)
        yield example


def _upright_size(file: str) -> tuple[int, int] | None:
    """Width and height as YOLO's labels mean them, with the EXIF orientation; None if the file cannot be read."""
    try:
        with Image.open(file) as image:
            # Of a PNG whose EXIF data lie at the end, reading them would decode the image.
            known = image.format != "PNG" or "exif" in image.info
            turned = known and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if turned else image.size
    except Exception:  # counted where the image is decoded
        return None


def _scale(example: dict[str, Any], width: int, height: int) -> None:
    """Turns fractions into pixels. Areas are of masks, or of boxes without pycocotools, which AP needs as well."""
    objects, scale = example["objects"], [width, height]
    example["width"], example["height"] = width, height
    objects["bbox"] = [[share * side for share, side in zip(box, scale * 2)] for box in objects["bbox"]]
    polygons = [None if text is None else json.loads(text) for text in objects["segmentation"]]
    objects["segmentation"] = [
        None if points is None else json.dumps([[share * scale[i % 2] for i, share in enumerate(points)]])
        for points in polygons
    ]
    objects["area"] = [
        box[2] * box[3] if polygon is None or coco_mask is None else _mask_area(polygon, width, height)
        for box, polygon in zip(objects["bbox"], objects["segmentation"])
    ]


def _mask_area(polygon: str, width: int, height: int) -> float:
    """
    The pixels of a polygon's mask. The area of the polygon itself would be wrong where parts of an object are joined by
    a line to one polygon and turn in different directions, as in conversions of COCO.
    """
    return float(coco_mask.area(segmentation_to_rle(json.loads(polygon), height, width)))
