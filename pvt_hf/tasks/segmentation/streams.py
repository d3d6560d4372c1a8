"""
Opening images with masks as a stream: built-in digit scenes, folders of images and masks (`folders.py`),
parquet files, webdataset tars, or a data set on the Hub. Images and masks stay encoded; `samples.py` decodes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from ...data.digits import SCENE_CLASS_NAMES
from ...data.folders import LeftOut, nothing_found
from ...data.streams import (
    Examples,
    Stream,
    check_columns,
    encoded_image,
    image_columns,
    make_stream,
    open_archives,
    open_digit_scenes,
    open_source,
)
from .folders import find_pairs
from .masks import merge_masks


# Usual names of the two columns. ADE20K's parquet files on the Hub have "image" and "annotation"; a webdataset of
# NAME.jpg and NAME.png has these endings as columns.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "pixel_values")
MASK_COLUMNS = ("annotation", "mask", "semantic_map", "segmentation_map", "segmentation", "label", "labels", "png")
LAYOUTS = (
    "images/SPLIT and annotations/SPLIT, or SPLIT/images and SPLIT/masks, or SPLIT and SPLIT_masks, or SPLIT with "
    "a.jpg and a_mask.png, or images and masks (for 'train' only), or the layout of Pascal VOC, Cityscapes, "
    "mmsegmentation or Kaggle (one folder per image)"
)


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
            webdataset tars; or the id of a data set on the Hub. Folders have one of the layouts in
            [`pvt_hf.data.folders`], such as

                images/training/a.jpg    annotations/training/a.png      ADE20K; also "masks" or "labels", and "train"
                train/images/a.jpg       train/masks/a.png               and so on for other splits
                images/a.jpg             masks/a.png                     everything is "train"

            A mask is a PNG, TIFF, BMP, GIF or NPY; `folders.py` beside this file says which belongs to an image.
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
        ValueError: fewer than two image columns, or more and none named; a named column that is not there; an image
            with two masks.
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


def _open_folder(folder: Path, split: str, left_out: LeftOut) -> Examples:
    pairs = find_pairs(folder, split, left_out)
    if pairs is not None:
        return _open_pairs(*pairs)
    archives = open_archives(folder, split, left_out)
    if archives is None:
        raise nothing_found(folder, split, "images with masks", LAYOUTS)
    return archives


def _open_pairs(images: list[Path], masks: list[list[Path]]) -> Examples:
    """One example, and one shard, for each image. `mask` is None for an image without one."""
    dataset = datasets.IterableDataset.from_generator(
        _read_files,
        features=datasets.Features({"image": datasets.Image(), "mask": datasets.Image()}),
        gen_kwargs={
            "images": [str(file) for file in images],
            "masks": [[str(file) for file in files] for files in masks],
            "merge": any(len(files) > 1 for files in masks),
        },
    )
    return Examples(dataset, len(images))


def _read_files(images: list[str], masks: list[list[str]], merge: bool) -> Iterator[dict[str, Any]]:
    for image, files in zip(images, masks):
        mask = merge_masks(files) if merge else encoded_image(files[0] if files else None)
        yield {"image": encoded_image(image), "mask": mask}
