"""
Finding images and their masks in folders. The layouts are listed in `data/folders.py`.

A mask is named like its image, except for the ending and for words at the beginning or end that say what a file is:
a.jpg and a.png, a_mask.png or mask_a.tif; img_1.png and label_1.png; x_leftImg8bit.png and x_gtFine_labelIds.png. Case
does not matter.

Cityscapes: if there are masks named labelTrainIds (19 classes, 255: no class), they are the ones that are read;
otherwise labelIds are, with their 34 numbers, which is logged. Colours, instances and polygons are never masks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from ...data.folders import (
    SPLIT_WORDS,
    LeftOut,
    child,
    files_below,
    find_split,
    find_split_file,
    folded,
    image_files,
    inner_folder,
    not_divided,
    readable_images,
    split_of,
    subfolders,
)
from ...data.log import warn_once


# Names of folders as `pvt_hf.data.folders.plain` makes them, the most usual first
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "imgdir", "jpegimages", "leftimg8bit", "rgb", "photos")
MASK_FOLDERS = (
    "annotations", "masks", "labels", "annotation", "mask", "label", "anndir", "segmentationclass",
    "segmentationclassaug", "gtfine", "gtcoarse", "annot", "ann", "gt", "groundtruth", "segmentations", "segmentation",
)  # fmt: skip
# JPEG is not among them, because it changes labels.
MASK_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy", ".pgm")
IMAGE_WORDS = "images?|imgs?|leftimg8bit|rgb|sat"
# Of Cityscapes' 19 classes, in the order of their train ids
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
MASK_WORDS = (
    "gtfine|gtcoarse|labelids|labeltrainids|masks?|labels?|seg|segmentation|annotations?|ann|annot|gt|groundtruth"
)

Pairs = tuple[list[Path], list[list[Path]]]


def find_pairs(folder: Path, split: str, left_out: LeftOut) -> Pairs | None:
    """
    The images of a split, and for each its masks: one, none, or several to be merged. None if no layout fits.

    Raises:
        FileNotFoundError: the folder is not divided into splits and this is not "train"; or no image has a mask.
        ValueError: two folders are equally good for the split, or two files for the mask of an image.
    """
    images, masks = _images_and_masks(folder, left_out)
    found = _pairs_of_two_folders(folder, images, masks, split, left_out) if images and masks else None
    if found is not None:
        return found
    folders = subfolders(folder, left_out)
    root, mask_root = find_split(folders, split), find_split(folders, split, MASK_FOLDERS)
    if root is not None:
        return pair(root, mask_root, left_out) if mask_root else _pairs_of_split(inner_folder(root, left_out), left_out)
    if (images and masks) or any(split_of(path.name, (*SPLIT_WORDS, *MASK_FOLDERS)) for path in folders):
        return None
    found = _pairs_of_split(folder, left_out)
    if found is not None and split != "train":
        raise not_divided(folder, split)
    return found


def _pairs_of_two_folders(folder: Path, images: Path, masks: Path, split: str, left_out: LeftOut) -> Pairs | None:
    """Pairs from `images` and `masks` in `folder`: those of Pascal VOC's list, those of the split, or all."""
    lists = child(folder, ("imagesets",), left_out)
    names = _read_list(child(lists, ("segmentation",), left_out) or lists, split, left_out) if lists else None
    if names is not None:
        return pair(images, masks, left_out, names)
    image_root, mask_root = _split_or_whole(images, split, left_out), _split_or_whole(masks, split, left_out)
    if image_root == images and mask_root == masks and split != "train":
        raise not_divided(folder, split)
    if image_root is None or mask_root is None or (image_root == images and mask_root != masks):
        return None
    return pair(image_root, mask_root, left_out)


def _images_and_masks(folder: Path, left_out: LeftOut) -> tuple[Path | None, Path | None]:
    return child(folder, IMAGE_FOLDERS, left_out), child(folder, MASK_FOLDERS, left_out)


def _split_or_whole(folder: Path, split: str, left_out: LeftOut) -> Path | None:
    """The subfolder of a split; the folder itself if it has no splits; None if it has others."""
    folders = subfolders(folder, left_out)
    return find_split(folders, split) or (None if any(split_of(path.name) for path in folders) else folder)


def _read_list(folder: Path, split: str, left_out: LeftOut) -> set[str] | None:
    """The names in Pascal VOC's list of a split, as [`folded`], without folders and endings; None without lists."""
    files = [file for file in files_below(folder, left_out) if file.suffix.lower() == ".txt"]
    if not files:
        return None
    file = find_split_file(files, split, lambda path: path.stem)
    if file is None and split == "train" and len(files) == 1 and split_of(files[0].stem) is None:
        file = files[0]  # CVAT's default.txt
    if file is None:
        raise FileNotFoundError(f"{folder} has no {split}.txt; it has {', '.join(path.name for path in files)}.")
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    paths = [line.split()[0].replace("\\", "/") for line in lines if line.strip()]
    return {folded(_without_ending(path.rpartition("/")[2])) for path in paths}


def _pairs_of_split(root: Path, left_out: LeftOut) -> Pairs | None:
    """Images and masks in two subfolders, in one folder per image, or in one folder together."""
    images, masks = _images_and_masks(root, left_out)
    if images is not None and masks is not None:
        return pair(images, masks, left_out)
    return _folder_per_image(root, left_out) or _beside_images(root, left_out)


def _folder_per_image(root: Path, left_out: LeftOut) -> Pairs | None:
    """ID/images/ID.png and ID/masks/*.png, one mask per object. None if no subfolder is of this kind."""
    images, masks = [], []
    for path in subfolders(root, LeftOut()):
        image_folder, mask_folder = _images_and_masks(path, LeftOut())
        if image_folder is None or mask_folder is None:
            continue
        image = image_files(image_folder, left_out)
        if len(image) != 1:
            raise ValueError(f"{image_folder}: expected one image in the folder of an image, found {len(image)}.")
        images += image
        masks.append(_mask_files(files_below(mask_folder, left_out), left_out))
    if any(len(files) > 1 for files in masks):
        warn_once(f"{root}: the masks of an image are merged into one, in which 1 is an object and 0 is not.")
    return (images, masks) if any(masks) else None


def _beside_images(root: Path, left_out: LeftOut) -> Pairs | None:
    """a.jpg with a_mask.png, or a.jpg with a.png, in one folder. None if there is no pair."""
    files = files_below(root, LeftOut())
    candidates = [file for file in files if file.suffix.lower() in MASK_ENDINGS]
    masks = {file for file in candidates if _name(file, MASK_WORDS)[0]}
    if not masks:
        photos = {_key(file, file.stem, root) for file in files if file.suffix.lower() in (".jpg", ".jpeg")}
        masks = {file for file in candidates if _key(file, file.stem, root) in photos}
    if not masks:
        return None
    images = readable_images([file for file in files if file not in masks], left_out)
    found = _pair_files(images, root, sorted(masks), root, left_out)
    return found if any(found[1]) else None


def pair(image_folder: Path, mask_folder: Path, left_out: LeftOut, names: Collection[str] | None = None) -> Pairs:
    """
    The images below one folder and their masks below another, in the same subfolders.

    Args:
        names: only images of these names, as [`folded`] and without endings.

    Raises:
        FileNotFoundError: no image has a mask.
        ValueError: an image has two masks.
    """
    images = image_files(image_folder, left_out)
    if names is not None:
        for name in sorted(set(names) - {folded(file.stem) for file in images}):
            left_out.add("names in the list that have no image", image_folder / name)
        images = [file for file in images if folded(file.stem) in names]
    files = files_below(mask_folder, left_out)
    masks = _mask_files(files, left_out)
    # VOC's list names only some images. Masks of the others are not reported as left out.
    found = _pair_files(images, image_folder, masks, mask_folder, left_out if names is None else LeftOut())
    if not any(found[1]):
        endings = ", ".join(sorted({file.suffix for file in files})) or "nothing"
        raise FileNotFoundError(
            f"None of the {len(images)} image(s) in {image_folder} has a mask among the {len(masks)} file(s) in "
            f"{mask_folder} with an ending of masks ({', '.join(MASK_ENDINGS)}; there is {endings}; JPEG changes "
            "labels): the mask of a/b.jpg is a/b.png or a/b_mask.png, with one class index per pixel."
        )
    return found


def _mask_files(files: list[Path], left_out: LeftOut) -> list[Path]:
    masks = [file for file in files if file.suffix.lower() in MASK_ENDINGS]
    for file in files:
        if file.suffix.lower() not in MASK_ENDINGS:
            left_out.add(f"files that are not masks (masks end in {', '.join(MASK_ENDINGS)})", file)
    return masks


def _pair_files(
    images: list[Path], image_folder: Path, masks: list[Path], mask_folder: Path, left_out: LeftOut
) -> Pairs:
    by_key: dict[tuple[str, str], list[tuple[str, Path]]] = defaultdict(list)
    for mask in masks:
        kind, name = _name(mask, MASK_WORDS)
        exact, stripped = _key(mask, mask.stem, mask_folder), _key(mask, name, mask_folder)
        for key in {exact, stripped}:
            by_key[key].append(("" if key == exact else kind, mask))
    train_ids = any(kind.endswith("labeltrainids") for found in by_key.values() for kind, _ in found)
    paired, used = [], set()
    for image in images:
        exact = _key(image, image.stem, image_folder)
        stripped = _key(image, _name(image, IMAGE_WORDS)[1], image_folder)
        found = by_key.get(exact) or by_key.get(stripped) or []
        found = [(kind, mask) for kind, mask in found if not (train_ids and kind.endswith("labelids"))]
        # An equal name goes before one with a word, and equal case before other case.
        ranks = {mask: (bool(kind), mask.stem != image.stem) for kind, mask in found}
        best = [mask for mask in ranks if ranks[mask] == min(ranks.values())]
        if len(best) > 1:
            raise ValueError(f"{image} has more than one mask: {', '.join(map(str, best))}. Keep one of them.")
        paired.append(best)
        used.update(best)
    kinds = {kind for found in by_key.values() for kind, mask in found if mask in used}
    if not train_ids and any(kind.endswith("labelids") for kind in kinds):
        warn_once(
            f"{mask_folder}: the masks are labelIds, which have the 34 numbers of Cityscapes. For its 19 classes, make "
            "labelTrainIds with cityscapesScripts, or give --ignore_other_values --mask_values "
            f"{' '.join(map(str, CITYSCAPES_IDS))}."
        )
    for mask in masks:
        if mask not in used:
            left_out.add("masks without an image", mask)
    return images, paired


def _key(file: Path, name: str, folder: Path) -> tuple[str, str]:
    """The subfolder of a file, and a name, without regard to case and to how accents are stored."""
    return folded(str(file.parent.relative_to(folder))), folded(name)


def _without_ending(name: str) -> str:
    """A file name without the ending of an image or a mask. Names may have other dots: c.d, and a.jpg.png."""
    return re.sub(r"(\.(jpe?g|png|tiff?|bmp|gif|npy|pgm|webp))+$", "", name, flags=re.IGNORECASE)


def _name(file: Path, words: str) -> tuple[str, str]:
    """The words that say what a file is ("" if there are none), and its name without them."""
    stem = _without_ending(file.name)
    end = re.fullmatch(rf"(.*?)((?:(?:^|[_\-. ])(?:{words}))+)", stem, re.IGNORECASE)
    if end:
        return re.sub(r"[\W_]", "", end[2].casefold()), end[1]
    start = re.fullmatch(rf"({words})[_\-. ](.+)", stem, re.IGNORECASE)
    return (start[1].casefold(), start[2]) if start else ("", stem)
