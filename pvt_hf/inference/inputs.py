"""What `pvt-hf predict` is given: files, folders, patterns and lists on standard input. Imports nothing heavy."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..data.folders import JUNK_FILES, LeftOut, files_below, is_junk, readable_images
from .photographs import PHOTO, photo


# Endings of video files, in lower case
VIDEOS = {
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts",
    ".vob", ".webm", ".wmv",
}  # fmt: skip


class Input(NamedTuple):
    """
    Attributes:
        path: as the user may find it: relative if the argument was.
        name: of its results, without an ending, relative to the folder for results: "photo" for a file that was named,
            "cat/1" for the file cat/1.jpg in a folder that was named.
    """

    path: Path
    name: str


class Inputs(NamedTuple):
    """
    Attributes:
        found: in the order of the arguments, each file once.
        problems: one line for each argument that names nothing that can be predicted.
        left_out: files in folders that are neither images nor videos, and the like.
    """

    found: list[Input]
    problems: list[str]
    left_out: LeftOut


def find_inputs(arguments: Iterable[str], output_dir: Path, results: Collection[Path] = ()) -> Inputs:
    """
    Finds the files that the arguments name.

    Args:
        arguments: paths of files or folders, patterns such as "photos/**/*.jpg", photographs such as "photo:china"
            ([`pvt_hf.photo`]), and "-" for a list on standard input. A path that exists is nothing else.
        output_dir: the folder for results. What is below it is left out of folders that contain it.
        results: files that are results of earlier runs, as absolute paths. They are left out of folders.
    """
    search = _Search(Path(os.path.abspath(output_dir)), frozenset(results))
    for argument in arguments:
        try:
            for text in _listed(sys.stdin.buffer.read()) if argument == "-" else [argument]:
                search.find(text)
        except ValueError as error:
            search.problems.append(str(error))
    return Inputs(list(search.found.values()), search.problems, search.left_out)


class _Search:
    """The state of [`find_inputs`]: `found` is by real path."""

    def __init__(self, output_dir: Path, results: frozenset[Path]):
        self.output_dir, self.results = output_dir, results
        self.found: dict[str, Input] = {}
        self.problems: list[str] = []
        self.left_out = LeftOut()

    def find(self, text: str) -> None:
        """Adds what one argument, or one line of a list, names."""
        path = Path(text)
        if path.is_file():
            self.add(path, path.stem)
        elif path.is_dir():
            self.add_folders([path], path, text)
        elif os.path.lexists(path):
            self.problems.append(f"{text}: neither a file nor a folder that can be read.")
        elif text.startswith(PHOTO):
            self.add_photo(text)
        elif not glob.has_magic(text):
            self.problems.append(f"{text}: there is no such file.")
        else:
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            files = [match for match in matches if match.is_file()]
            # "**" matches the folders, and what is in them.
            folders = [match for match in matches if match.is_dir() and "**" not in text]
            self.add_folders(folders, _fixed_part(text), text, files)

    def add_photo(self, text: str) -> None:
        name = text.removeprefix(PHOTO)
        try:
            self.add(Path(photo(name)), name)
        except (ImportError, FileNotFoundError) as error:
            self.problems.append(f"{text}: {error}")

    def add_folders(self, folders: list[Path], start: Path, text: str, files: Sequence[Path] = ()) -> None:
        """Adds the images and videos in folders, and those of the `files`. `text` is what the user has given."""
        files = list(files)
        try:
            for folder in folders:
                files += files_below(folder, self.left_out)
        except OSError as error:
            self.problems.append(f"{text}: {error.strerror}: {error.filename}")
        else:
            if not self.add_found(files, start):
                self.problems.append(f"{text}: there are no images or videos.")

    def add_found(self, files: list[Path], start: Path) -> bool:
        """Adds the images and videos of these files, which the user has not named one by one. Whether there are any."""
        others = []
        for path in files:
            if is_junk(path.name):
                self.left_out.add(JUNK_FILES, path)
            elif self.is_result(path, start):
                self.left_out.add("results of pvt-hf predict", path)
            else:
                others.append(path)
        images = set(readable_images([path for path in others if not is_video(path)], self.left_out))
        usable = [path for path in others if path in images or is_video(path)]
        for path in usable:
            self.add(path, _name_below(path, start))
        return bool(usable)

    def is_result(self, path: Path, start: Path) -> bool:
        path, start = Path(os.path.abspath(path)), Path(os.path.abspath(start))
        apart = self.output_dir != start and self.output_dir.is_relative_to(start)
        return path in self.results or (apart and path.is_relative_to(self.output_dir))

    def add(self, path: Path, name: str) -> None:
        real = os.path.realpath(path)
        if real in self.found:
            self.left_out.add("files named more than once", path)
        else:
            self.found[real] = Input(path, name)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def _fixed_part(pattern: str) -> Path:
    """The folder in a pattern before its first part with a special character."""
    parts = Path(pattern).parts
    return Path(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])


def _name_below(path: Path, start: Path) -> str:
    """The path relative to `start`, without its ending; the stem alone if that would leave the folder for results."""
    relative = path.relative_to(start) if path.is_relative_to(start) else Path(path.name)
    return path.stem if ".." in relative.parts else relative.with_name(path.stem).as_posix()


def _listed(data: bytes) -> list[str]:
    """
    The names in a list: one a line, or separated by zero bytes as `find -print0` writes them. Empty lines do not count.

    Raises:
        ValueError: it is an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
    except Exception:  # no image, as it should be
        separator = b"\0" if b"\0" in data else b"\n"
        names = [line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(separator)]
        return [os.fsdecode(name) for name in names if name.strip()]
    raise ValueError(f"-: standard input is a {kind} image; expected a list of file names, one a line. Name the file.")


def unique_names(inputs: Iterable[Input], taken: Callable[[str], bool]) -> list[str]:
    """
    The names of the results: those of the inputs, or NAME-2 and so on where a name is taken.

    Args:
        taken: whether results of this name would overwrite something.
    """
    names, used, numbers = [], set[str](), Counter[str]()
    for one in inputs:
        name = one.name
        while name.casefold() in used or taken(name):
            numbers[one.name] += 1
            name = f"{one.name}-{numbers[one.name] + 1}"
        used.add(name.casefold())
        names.append(name)
    return names
