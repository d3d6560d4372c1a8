"""
Opening a source of images and masks as a stream: built-in digit scenes, folders of images and PNG masks (ADE20K's
original layout among them), parquet files, webdataset tars, or a Hub data set.

Images and masks stay encoded: `samples.py` decodes them, where a damaged file is a sample to skip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from ...data.digits import SCENE_CLASS_NAMES
from ...data.streams import SPLIT_NAMES, Stream, open_archives, open_digit_scenes, open_source, split_root


# What people call the two folders and the two columns; ADE20K has "images" and "annotations", its parquet files on the
# Hub "image" and "annotation", a webdataset of NAME.jpg and NAME.png (or NAME.seg.png) has these endings.
IMAGE_FOLDERS = ("images", "image", "imgs")
MASK_FOLDERS = ("annotations", "masks", "labels", "annotation", "mask")
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "pixel_values")
MASK_COLUMNS = ("annotation", "mask", "semantic_map", "segmentation_map", "segmentation", "label", "labels", "png")


def open_segmentation_stream(
    source: str,
    split: str = "train",
    *,
    image_column: str | None = None,
    mask_column: str | None = None,
    image_size: int = 128,
    digit_sizes: Sequence[int] = (),
    **load_kwargs: Any,
) -> Stream:
    """
    Args:
        source: `"digit-scenes"` (built in, 11 classes); a folder of images and masks, of parquet files or of webdataset
            tars; or the id of a data set on the Hub. Folders of images and masks are laid out in one of these ways, and
            a mask is the PNG with the same path below its folder as the image, but for the ending:

                images/training/a.jpg    annotations/training/a.png      ADE20K; or "masks" or "labels", and "train"
                train/images/a.jpg       train/masks/a.png               and so on for other splits
                images/a.jpg             masks/a.png                     everything is "train"
        split: `"train"`, `"validation"` or `"test"`, or any other that the source names. The built-in scenes have train
            and test; validation is test there.
        image_column, mask_column: found by type (images) and name if not given.
        image_size: side in pixels of the built-in scenes.
        digit_sizes: smallest and largest digit in them, in pixels; by default a sixth to a half of the side.
        load_kwargs: for `datasets.load_dataset` of a Hub id: `name`, `revision`, `token` ...

    Returns:
        A [`Stream`] with `mask_column`, and `class_names` by raw label for the built-in scenes alone. A folder has one
        shard per image, parquet files one per row group. An image without a mask has None in its place, and is counted
        as unusable when it is read. A mask without an image is left out.

    Raises:
        FileNotFoundError: nothing there, no such split, or no image with a mask; the message says what was expected.
        ValueError: fewer than two image columns, or more and none named.
    """
    class_names = None
    num_samples: int | None
    if source == "digit-scenes":
        dataset, num_samples = open_digit_scenes(split, image_size, digit_sizes)
        dataset = dataset.select_columns(["image", "semantic_map", "image_id"])
        class_names = SCENE_CLASS_NAMES
    else:
        dataset, num_samples = open_source(source, split, _open_folder, load_kwargs)
    image_column, mask_column = _find_columns(dataset.features, image_column, mask_column, source)
    return Stream(
        name=f"{source} ({split})",
        dataset=dataset.decode(False),
        image_column=image_column,
        label_column=None,
        class_names=class_names,
        num_samples=num_samples,
        mask_column=mask_column,
    )


def _find_columns(
    features: datasets.Features, image_column: str | None, mask_column: str | None, source: str
) -> tuple[str, str]:
    for column in filter(None, (image_column, mask_column)):
        if column not in features:
            raise ValueError(f"{source} has no column {column!r}; it has {', '.join(features)}.")
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
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
            f"{source} must have a column of images and one of masks, which are images as well; it has "
            f"{f'the image columns {found}' if found else f'no image column among {list(features)}'}: name them with "
            "image_column and mask_column."
        )
    return image_column, mask_column


def _open_folder(folder: Path, split: str) -> tuple[datasets.IterableDataset, int | None]:
    pairs = _find_pair_of_folders(folder, split)
    if pairs is not None:
        return _open_pairs(*pairs)
    root = split_root(folder, split)
    opened = open_archives(root, split, by_name=root is folder)
    if opened is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{folder} holds no images with masks of the split {split!r}. Expected in it: images/SPLIT and "
            "annotations/SPLIT, or SPLIT/images and SPLIT/masks, or images and masks (for 'train' alone); or parquet "
            f"files or webdataset tars. There is: {there}."
        )
    return opened


def _find_pair_of_folders(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The folder of images and that of masks of a split, in the first of the layouts that is there."""
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


def _open_pairs(image_folder: Path, mask_folder: Path) -> tuple[datasets.IterableDataset, int]:
    """One example, and one shard, for each image; `mask` is None where there is no mask of the same name."""
    extensions = {extension.lower() for extension in Image.registered_extensions()}
    images = sorted(file for file in image_folder.rglob("*") if file.suffix.lower() in extensions)
    masks = {file.relative_to(mask_folder).with_suffix(""): file for file in sorted(mask_folder.rglob("*.png"))}
    found = [masks.get(file.relative_to(image_folder).with_suffix("")) for file in images]
    if not any(found):
        raise FileNotFoundError(
            f"None of the {len(images)} image(s) in {image_folder} has a mask among the {len(masks)} PNG file(s) in "
            f"{mask_folder}: the mask of a/b.jpg is a/b.png, with one class index per pixel."
        )
    dataset = datasets.IterableDataset.from_generator(
        _read_pairs,
        features=datasets.Features({"image": datasets.Image(), "mask": datasets.Image()}),
        gen_kwargs={"images": [str(file) for file in images], "masks": [file and str(file) for file in found]},
    )
    return dataset, len(images)


def _read_pairs(images: list[str], masks: list[str | None]) -> Iterator[dict[str, Any]]:
    for image, mask in zip(images, masks):
        yield {
            "image": {"path": image, "bytes": None},
            "mask": None if mask is None else {"path": mask, "bytes": None},
        }
