"""
Opening images with masks as a stream: built-in digit scenes, folders of images and PNG masks (such as ADE20K's),
parquet files, webdataset tars, or a data set on the Hub. Images and masks stay encoded; `samples.py` decodes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from ...data.digits import SCENE_CLASS_NAMES
from ...data.streams import (
    SPLIT_NAMES,
    Examples,
    Stream,
    check_columns,
    encoded_image,
    image_columns,
    image_files,
    make_stream,
    nothing_found,
    open_archives,
    open_digit_scenes,
    open_source,
)


# Usual names of the two folders and of the two columns. ADE20K has "images" and "annotations", its parquet files on the
# Hub "image" and "annotation"; a webdataset of NAME.jpg and NAME.png has these endings as columns.
IMAGE_FOLDERS = ("images", "image", "imgs")
MASK_FOLDERS = ("annotations", "masks", "labels", "annotation", "mask")
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "pixel_values")
MASK_COLUMNS = ("annotation", "mask", "semantic_map", "segmentation_map", "segmentation", "label", "labels", "png")
LAYOUTS = "images/SPLIT and annotations/SPLIT, or SPLIT/images and SPLIT/masks, or images and masks (for 'train' only)"


def open_segmentation_stream(
    source: str,
    split: str = "train",
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    image_size: int = 128,
    digit_sizes: Sequence[int] = (),
) -> Stream:
    """
    Args:
        source: `"digit-scenes"` (built in, 11 classes); a folder of images and masks; a folder of parquet files or
            webdataset tars; or the id of a data set on the Hub. Folders of images and masks have one of these layouts.
            A mask is a PNG with the path of its image, but for the ending:

                images/training/a.jpg    annotations/training/a.png      ADE20K; also "masks" or "labels", and "train"
                train/images/a.jpg       train/masks/a.png               and so on for other splits
                images/a.jpg             masks/a.png                     everything is "train"
        split: `"train"`, `"validation"` or `"test"`, or another name that the source has. The built-in scenes have
            train and test; validation is test.
        image_column, mask_column: by default found by type (images) and name.
        image_size: side of the built-in scenes in pixels.
        digit_sizes: smallest and largest digit in them, in pixels. Default: one sixth and one half of the side.

    Returns:
        A [`Stream`] with the columns "image" and "mask". Only the built-in scenes have `class_names`, by label before
        any reduction. A folder has one shard per image, parquet files one per row group. An image without a mask has
        None instead, and counts as unusable when it is read. A mask without an image is ignored.

    Raises:
        FileNotFoundError: no such source or split, or no image with a mask.
        ValueError: fewer than two image columns, or more and none named; a named column that is not there.
    """
    if source == "digit-scenes":
        examples = replace(open_digit_scenes(split, image_size, digit_sizes), class_names=SCENE_CLASS_NAMES)
    else:
        examples = open_source(source, split, _open_folder)
    features = examples.features
    check_columns(source, features, image_column, mask_column)
    image_column, mask_column = _find_columns(source, features, image_column, mask_column)
    return make_stream(source, split, examples, {"image": image_column, "mask": mask_column})


def _find_columns(
    source: str, features: datasets.Features, image_column: str | None, mask_column: str | None
) -> tuple[str, str]:
    found = image_columns(features)
    rest = [name for name in found if name not in (image_column, mask_column)]
    if image_column is None:
        image_column = next((name for name in IMAGE_COLUMNS if name in rest), None)
        if image_column is None and mask_column is not None and len(rest) == 1:
            image_column = rest[0]
        rest = [name for name in rest if name != image_column]
    if mask_column is None:
        by_name = next((name for name in MASK_COLUMNS if name in rest), None)
        mask_column = by_name or (rest[0] if image_column is not None and len(rest) == 1 else None)
    if image_column is None or mask_column is None:
        raise ValueError(
            f"{source} needs a column of images and one of masks, which are images as well; it has "
            f"{f'the image columns {found}' if found else f'no image column among {list(features)}'}: name them with "
            "image_column and mask_column."
        )
    return image_column, mask_column


def _open_folder(folder: Path, split: str) -> Examples:
    folders = _find_folders(folder, split)
    if folders is not None:
        return _open_pairs(*folders)
    archives = open_archives(folder, split)
    if archives is None:
        raise nothing_found(folder, split, "images with masks", LAYOUTS)
    return archives


def _find_folders(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The folder of a split's images and that of its masks, in the first layout that fits."""
    splits = SPLIT_NAMES.get(split, (split,))
    all_splits = {name for names in SPLIT_NAMES.values() for name in names}
    images, masks = _child(folder, IMAGE_FOLDERS), _child(folder, MASK_FOLDERS)
    if images is not None and masks is not None:
        images_of_split, masks_of_split = _child(images, splits), _child(masks, splits)
        if images_of_split is not None and masks_of_split is not None:
            return images_of_split, masks_of_split
        if split == "train" and not any(path.name in all_splits for path in images.iterdir() if path.is_dir()):
            return images, masks
    root = _child(folder, splits)
    if root is not None:
        images, masks = _child(root, IMAGE_FOLDERS), _child(root, MASK_FOLDERS)
        if images is not None and masks is not None:
            return images, masks
    return None


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _open_pairs(image_folder: Path, mask_folder: Path) -> Examples:
    """One example, and one shard, for each image. `mask` is None if there is no mask of the same name."""
    images = image_files(image_folder)
    by_name = {file.relative_to(mask_folder).with_suffix(""): file for file in sorted(mask_folder.rglob("*.png"))}
    masks = [by_name.get(file.relative_to(image_folder).with_suffix("")) for file in images]
    if not any(masks):
        raise FileNotFoundError(
            f"None of the {len(images)} image(s) in {image_folder} has a mask among the {len(by_name)} PNG file(s) in "
            f"{mask_folder}: the mask of a/b.jpg is a/b.png, with one class index per pixel."
        )
    dataset = datasets.IterableDataset.from_generator(
        _read_files,
        features=datasets.Features({"image": datasets.Image(), "mask": datasets.Image()}),
        gen_kwargs={"images": [str(file) for file in images], "masks": [file and str(file) for file in masks]},
    )
    return Examples(dataset, len(images))


def _read_files(images: list[str], masks: list[str | None]) -> Iterator[dict[str, Any]]:
    for image, mask in zip(images, masks):
        yield {"image": encoded_image(image), "mask": encoded_image(mask)}
