"""
Finding files in folders as people have them. Every reader of folders uses this file.

Accepted layouts (SPLIT is any usual name: train, Training, train2017, val, valid, Validation, dev, test, test_set ...;
case and separators do not matter in the names of splits and of special folders, nor case in endings):

    classification    SPLIT/CLASS/a.jpg, or CLASS/a.jpg (everything is "train")
    segmentation      images/SPLIT/a.jpg         annotations/SPLIT/a.png         ADE20K
                      img_dir/SPLIT/a.jpg        ann_dir/SPLIT/a.png             mmsegmentation
                      leftImg8bit/SPLIT/c/a_leftImg8bit.png    gtFine/SPLIT/c/a_gtFine_labelTrainIds.png    Cityscapes
                      JPEGImages/a.jpg           SegmentationClass/a.png         Pascal VOC: ImageSets/.../SPLIT.txt
                      SPLIT/images/a.jpg         SPLIT/masks/a.png
                      SPLIT/a.jpg                SPLIT_masks/a_mask.gif          Carvana
                      SPLIT/a.jpg                SPLIT/a_mask.png                masks beside their images
                      SPLIT/ID/images/ID.png     SPLIT/ID/masks/*.png            one folder per image (Kaggle)
    detection         annotations/instances_SPLIT.json, or beside it    SPLIT/a.jpg or images/SPLIT/a.jpg
                      SPLIT/annotations.json     SPLIT/a.jpg or SPLIT/images/a.jpg
    all tasks         parquet files or tars, in SPLIT/ or named after their split

A folder that holds nothing but one folder of folders (an unpacked archive) stands for the inner one. Links are
followed, but not in circles. Junk of systems and tools, files of other kinds and images that cannot be read here are
left out, counted and reported.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from PIL import Image

from .log import warn_once


# Usual names of the three splits
SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
# What may stand before or after the name of a split: train_set, stage1_train, test-images
SPLIT_WORDS = ("", "set", "data", "dataset", "split", "stage", "images", "image", "imgs", "img")

# Folders and files of macOS, Windows, Linux, network storage and tools. All names with a leading dot are junk as well.
JUNK = {
    "__macosx", "__pycache__", "@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "lost+found",
    "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
JUNK_FILES = "junk files of systems and tools"
# Formats that Pillow knows but cannot decode, or decodes by starting another program
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
# Endings of images that Pillow may not know
OTHER_IMAGES = {
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".webp", ".svg", ".eps", ".wmf", ".emf", ".exr", ".hdr", ".xcf",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".raw", ".dcm", ".nii",
}  # fmt: skip


class LeftOut:
    """What a reader of folders leaves out: paths by reason."""

    def __init__(self) -> None:
        self.paths: dict[str, dict[Path, None]] = {}

    def add(self, reason: str, path: Path) -> None:
        """A path counts once for each reason, however often it is found."""
        self.paths.setdefault(reason, {})[path] = None

    def __str__(self) -> str:
        parts = []
        for reason, paths in self.paths.items():
            shown = ", ".join("/".join(path.parts[-2:]) for path in sorted(paths)[:3])
            parts.append(f"{len(paths)} x {reason} ({shown}{' ...' * (len(paths) > 3)})")
        return "; ".join(parts)

    def report(self, source: str, split: str) -> None:
        """Logs the counts, if anything was left out."""
        if self.paths:
            warn_once(f"{source} ({split}): left out {self}.")


# Names


def composed(name: str) -> str:
    """A name with each accented letter as one character. macOS and its archives often have two: e and the accent."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """A name in the form in which names are compared: without regard to case and to how accents are stored."""
    return composed(composed(name).casefold())


def plain(name: str) -> str:
    """A name without case and separators: "Img_Dir" and "imgdir" are the same."""
    return re.sub(r"[\W_]+", "", folded(name))


class Finder:
    """Finds files that annotations name, even if the spelling on disk differs ([`folded`]). Lists each folder once."""

    def __init__(self) -> None:
        self.folders: dict[Path, Path | None] = {}
        self.names: dict[Path, dict[str, list[str]]] = {}

    def file(self, path: Path) -> Path | None:
        """The file at this path, or else the only one with the same folded name; None if there is not exactly one."""
        folder = self.folder(path.parent)
        return None if folder is None else self._entry(folder, path.name)

    def folder(self, path: Path) -> Path | None:
        """As [`file`], for a folder."""
        if path not in self.folders:
            found: Path | None = path
            if not path.is_dir():
                parent = self.folder(path.parent) if path.parent != path else None
                found = None if parent is None else self._entry(parent, path.name)
                found = found if found is not None and found.is_dir() else None
            self.folders[path] = found
        return self.folders[path]

    def _entry(self, folder: Path, name: str) -> Path | None:
        if folder not in self.names:
            self.names[folder] = defaultdict(list)
            for entry in os.listdir(folder):
                self.names[folder][folded(entry)].append(entry)
        alike = self.names[folder].get(folded(name), [])
        return folder / (name if name in alike else alike[0]) if name in alike or len(alike) == 1 else None


def known_split(split: str) -> str | None:
    """ "train", "validation" or "test" for any usual name of it, None for another name."""
    return next((known for known, names in SPLIT_NAMES.items() if split.casefold() in names), None)


def split_of(name: str, words: Collection[str] = SPLIT_WORDS) -> str | None:
    """
    The split that a folder is named after, or None.

    Args:
        words: what may stand before or after the name of the split, beside digits; `""` allows nothing.
    """
    text = re.sub(r"\d+", "", plain(name))
    for split, aliases in SPLIT_NAMES.items():
        for alias in aliases:
            if (text.startswith(alias) and text.removeprefix(alias) in words) or (
                text.endswith(alias) and text.removesuffix(alias) in words
            ):
                return split
    return None


def split_in(name: str) -> str | None:
    """The first split that is named in a file's name, between other words: train-00000-of-00002, instances_Val2017."""
    return next(filter(None, map(split_of, re.findall(r"[^\W\d_]+", name))), None)


def find_split(folders: Iterable[Path], split: str, words: Collection[str] = SPLIT_WORDS) -> Path | None:
    """
    The folder that is named after a split: by the name itself, or else by the first of its usual names. None if there
    is none. For `words` see [`split_of`].

    Raises:
        ValueError: several are equally good.
    """
    return _best_named(
        [(path, path.name if "" in words else "", split_of(path.name, words)) for path in folders], split
    )


def find_split_file(files: Iterable[Path], split: str, name_of: Callable[[Path], str]) -> Path | None:
    """As [`find_split`], for files. In `name_of(file)` the split may stand between other words."""
    return _best_named([(path, name_of(path), split_in(name_of(path))) for path in files], split)


def _best_named(candidates: list[tuple[Path, str, str | None]], split: str) -> Path | None:
    """The path for a split, from paths, their names, and the splits that they seem to be."""
    known = known_split(split)
    names = (split.casefold(), *SPLIT_NAMES.get(known or "", ()))
    ranks = {}
    for path, name, its_split in candidates:
        if name.casefold() in names:
            ranks[path] = names.index(name.casefold())
        elif known is not None and its_split == known:
            ranks[path] = len(names)
    first = min(ranks.values(), default=0)
    best = [path for path in ranks if ranks[path] == first]
    if len(best) > 1:
        raise ValueError(
            f"{best[0].parent} has more than one {split!r}: {', '.join(path.name for path in best)}. Give the exact "
            "name of one of them as the split, or rename the others."
        )
    others = ", ".join(sorted(path.name for path in ranks if path not in best))
    if others:
        warn_once(f"{best[0].parent}: for the split {split!r}, {best[0].name} is read, and not {others}.")
    return best[0] if best else None


# Folders


def is_junk(name: str) -> bool:
    """Whether an operating system or a tool left this, and not the user."""
    return name.startswith(".") or name.casefold() in JUNK


def list_folder(folder: Path, left_out: LeftOut) -> tuple[list[Path], list[Path]]:
    """The subfolders and the regular files of a folder, both in order, through links."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself
                is_folder = is_file = False
            if is_junk(entry.name):
                is_placeholder = entry.name.endswith(".icloud")
                left_out.add("files not downloaded from iCloud" if is_placeholder else JUNK_FILES, path)
            elif is_folder:
                folders.append(path)
            elif is_file:
                files.append(path)
            else:
                left_out.add("broken links" if entry.is_symlink() else "pipes, sockets or devices", path)
    return sorted(folders), sorted(files)


def files_below(folder: Path, left_out: LeftOut) -> list[Path]:
    """
    All regular files below a folder, in order. Links are followed. A folder that links lead to more than once is read
    once, under its own path if that is below `folder`; a link to a folder above is not followed.
    """
    start = Path(os.path.realpath(folder))
    found, seen, pending = [], set(), deque([folder])
    while pending:
        current = pending.popleft()
        real = Path(os.path.realpath(current))
        if current != folder and current.is_symlink():
            above = start.is_relative_to(real) or Path(os.path.realpath(current.parent)).is_relative_to(real)
            if above or real in seen:
                left_out.add("links to folders that are read already", current)
                continue
        elif real in seen:
            continue
        seen.add(real)
        folders, files = list_folder(current, left_out)
        found += files
        pending.extendleft(path for path in folders if not path.is_symlink())
        pending.extend(path for path in folders if path.is_symlink())
    return sorted(found)


def subfolders(folder: Path, left_out: LeftOut) -> list[Path]:
    return list_folder(folder, left_out)[0]


def child(folder: Path, names: Iterable[str], left_out: LeftOut) -> Path | None:
    """The subfolder with the first of `names` (in the form of [`plain`]) that exists; None if there is none."""
    by_name = {plain(path.name): path for path in reversed(subfolders(folder, left_out))}
    return next((by_name[name] for name in names if name in by_name), None)


def inner_folder(folder: Path, left_out: LeftOut) -> Path:
    """
    Skips the outer folders of an unpacked archive: while a folder holds nothing but one folder of folders, goes on to
    that one. A folder named after a split is not skipped.
    """
    folders, files = list_folder(folder, left_out)
    if len(folders) != 1 or split_of(folders[0].name) or _has_data(files):
        return folder
    inner_folders, inner_files = list_folder(folders[0], left_out)
    return inner_folder(folders[0], left_out) if inner_folders and not _has_data(inner_files) else folder


def _has_data(files: list[Path]) -> bool:
    endings = readable_endings() | OTHER_IMAGES | {".parquet", ".tar", ".json", ".yaml", ".yml"}
    return any(file.suffix.lower() in endings for file in files)


def split_folder(folder: Path, split: str, left_out: LeftOut) -> Path:
    """
    The subfolder of a split; `folder` itself if it is not divided into splits.

    Raises:
        FileNotFoundError: it has a folder for training, but none for this split.
        ValueError: it has more than one.
    """
    folders = subfolders(folder, left_out)
    found = find_split(folders, split)
    if found is None and any(split_of(path.name) == "train" for path in folders):
        raise no_such_split(folder, split, [path for path in folders if split_of(path.name)])
    return found or folder


# Files


def readable_endings() -> set[str]:
    """The endings, in lower case, of images that Pillow can decode here."""
    endings = Image.registered_extensions()
    return {ending for ending, name in endings.items() if name in Image.OPEN and name not in NOT_DECODED}


def image_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """All images below a folder that can be read here, in order."""
    return readable_images(files_below(folder, left_out), left_out)


def readable_images(files: list[Path], left_out: LeftOut) -> list[Path]:
    """Those files that are images and can be read here, by their endings."""
    readable, images = readable_endings(), []
    for file in files:
        ending = file.suffix.lower()
        if ending in readable:
            images.append(file)
        elif ending in OTHER_IMAGES:
            left_out.add(f"{ending} images that Pillow cannot read here: convert them to PNG or JPEG", file)
        else:
            left_out.add("files that are not images", file)
    return images


# Errors


def no_such_split(folder: Path, split: str, splits: list[Path]) -> FileNotFoundError:
    """The error for a folder that has other splits."""
    return FileNotFoundError(
        f"{folder} has no split {split!r}; its folders are {', '.join(path.name for path in splits)}. Name one of them "
        "as the split, or hold out a share of the images in training (--eval_share 0.2)."
    )


def not_divided(folder: Path, split: str) -> FileNotFoundError:
    """The error for a folder without splits, in which all images are for training."""
    return FileNotFoundError(
        f"{folder} is not divided into splits, so it has no {split!r}: make folders {folder / 'train'} and "
        f"{folder / split}, or hold out a share of the images in training (--eval_share 0.2)."
    )


def nothing_found(folder: Path, split: str, wanted: str, layouts: str) -> FileNotFoundError:
    """The error for a folder in which no layout is recognised."""
    names = sorted(path.name for path in folder.iterdir())
    there = ", ".join(names[:20]) + " ..." * (len(names) > 20) or "nothing"
    return FileNotFoundError(
        f"{folder} has no {wanted} for the split {split!r}. Expected in it: {layouts}; or parquet files or webdataset "
        f"tars. It contains: {there}."
    )
