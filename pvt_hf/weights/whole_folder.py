"""Writes a folder whole or not at all. Imports nothing heavy."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path


def check_replaceable(output: Path, overwrite: bool, marker: str, written: Sequence[str]) -> None:
    """
    Raises a FileExistsError if the folder `output` cannot be created, or may not be replaced. Only one that an earlier
    run has written is replaced, and only if nothing else has been put there.

    Args:
        overwrite: whether a folder with content may be replaced.
        marker: a file that every run writes.
        written: patterns for the names of all files that a run writes. It writes no folders.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file, expected a folder to create: choose another output.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{output} is not empty: choose another output, or pass --overwrite to replace it.")
    if Path.cwd().is_relative_to(output.resolve()):
        raise FileExistsError(f"{output} contains the working directory and is not replaced: choose another output.")
    other = sorted(
        path.name
        for path in output.iterdir()
        if not path.is_file() or not any(fnmatchcase(path.name, pattern) for pattern in written)
    )
    if other:
        names = ", ".join(other[:6]) + (f" and {len(other) - 6} more" if len(other) > 6 else "")
        raise FileExistsError(
            f"{output} has {names}, which no earlier run wrote, and is not replaced: choose another output, or move "
            "them away."
        )
    if not (output / marker).is_file():
        raise FileExistsError(
            f"{output} has no {marker}, so no earlier run wrote it, and it is not replaced: choose another output."
        )


@contextmanager
def folder_written_whole(output: Path) -> Iterator[Path]:
    """
    Yields an empty folder on the same file system. Renames it to `output` at the end, or removes it after an error.

    An old `output` is first renamed to `.NAME.old.*`, with the first 50 characters of its name. It returns after an
    error, also Ctrl-C. A process killed between the two renames leaves it there.
    """
    existing = next(parent for parent in output.parents if parent.exists())
    suffix = uuid.uuid4().hex
    name = output.name[:50]  # with the suffix, within the 255 bytes that file systems allow
    new, old = existing / f".{name}.new.{suffix}", output.with_name(f".{name}.old.{suffix}")
    new.mkdir()
    try:
        yield new
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            if output.exists():
                os.rename(output, old)
            os.rename(new, output)
        except BaseException:  # Ctrl-C and SIGTERM, too
            if not new.exists():
                os.rename(output, new)
            if old.exists():
                os.rename(old, output)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)  # already renamed, unless there was an error
    try:
        shutil.rmtree(old, ignore_errors=True)
    finally:  # again, if Ctrl-C or SIGTERM came meanwhile
        shutil.rmtree(old, ignore_errors=True)
