"""Writes a folder whole or not at all. Imports nothing heavy."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_replaceable(output: Path, overwrite: bool, needed: dict[str, Path]) -> None:
    """
    Raises a FileExistsError if the folder `output` cannot be created, or may not be replaced.

    Args:
        overwrite: whether a folder with content may be replaced.
        needed: paths that the folder must not contain, with a description of each.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file, expected a folder to create: choose another output.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{output} is not empty: choose another output, or pass --overwrite to replace it.")
    needed = {**needed, "the working directory": Path.cwd(), "the home folder": Path.home()}
    for what, kept in needed.items():
        if kept.resolve().is_relative_to(output.resolve()):
            raise FileExistsError(f"{output} contains {what} and is not replaced: choose another output.")


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
