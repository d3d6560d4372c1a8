"""Finds the image files that annotations name: names from other machines, with other separators, or as URLs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...data.folders import Finder


# Image files that are looked for in a folder before it counts as the wrong one
FILES_TRIED = 100


def plain_name(name: str) -> str:
    """A file name with forward slashes, without ".", a drive or the host of a URL: `C:\\a\\b.png` is /a/b.png."""
    if "://" in name:
        name = unquote(urlsplit(name).path).lstrip("/")
    name = name.replace("\\", "/")
    if name[1:3] == ":/":
        name = name[2:]
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + "/".join(parts)


def find_image_files(names: Sequence[str], folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """
    The files of images, by their names in the annotations, and the names whose folder was not found.

    A name's folder is looked for below each of `folders`, whole and then without its first parts: data/train/a.png
    may be train/a.png or a.png there. An absolute path that exists is used first. All names with the same folder are
    taken to be in one place, which is searched for with at most `FILES_TRIED` of them. Files are found even if their
    spelling differs ([`pvt_hf.data.folders.Finder`]) or the name has %20 for a blank.

    Args:
        names: as in the annotations.
        folders: where images may be, the likeliest first.

    Raises:
        FileNotFoundError: no image is found.
        ValueError: two names would be the same file.
    """
    plain = [plain_name(name) for name in names]
    members: dict[str, list[str]] = defaultdict(list)
    for name in plain:
        parent, _, base = name.rpartition("/")
        if len(members[parent]) < FILES_TRIED:
            members[parent].append(base)
    finder = Finder()
    places = {parent: _find_place(parent, bases, folders, finder) for parent, bases in members.items()}
    if not any(places.values()):
        raise FileNotFoundError(
            f"None of the {len(names)} image(s), {', '.join(names[:3])} ..., is in any of "
            f"{', '.join(str(path) for path in folders if path.is_dir()) or folders[0]}."
        )
    files, lost = [], []
    taken: dict[str, str] = {}
    for name in plain:
        parent, _, base = name.rpartition("/")
        place = places[parent]
        if place is None:
            lost.append(name)
        path = (place or folders[0] / parent.lstrip("/")) / base
        file = str((_find_file(path, finder) if place else None) or path)
        if taken.setdefault(file, name).lstrip("/") != name.lstrip("/"):
            raise ValueError(f"{taken[file]} and {name} would both be the file {file}: keep the folders of the images.")
        files.append(file)
    return files, lost


def _find_file(path: Path, finder: Finder) -> Path | None:
    return finder.file(path) or (finder.file(path.with_name(unquote(path.name))) if "%" in path.name else None)


def _find_place(parent: str, bases: list[str], folders: Sequence[Path], finder: Finder) -> Path | None:
    """The folder in which any of the files `bases` is, for the folder `parent` of the annotations."""
    parts = parent.strip("/").split("/") if parent.strip("/") else []
    places = [Path(parent)] if parent.startswith("/") else []
    places += [folder.joinpath(*parts[depth:]) for depth in range(len(parts) + 1) for folder in folders]
    exact = (place for place in places if any((place / base).is_file() for base in bases))
    spelled_otherwise = (place for place in places if any(_find_file(place / base, finder) for base in bases))
    return next(exact, None) or next(spelled_otherwise, None)
