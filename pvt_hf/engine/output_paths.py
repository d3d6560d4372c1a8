"""Whether results can be written to a path. Imports nothing heavy: arguments are checked with it."""

from __future__ import annotations

import os
from pathlib import Path


def check_output_folder(flag: str, folder: str | Path) -> None:
    """
    Raises an OSError if `folder`, the value of `--flag`, is empty or cannot be created or written to. Creates nothing.
    """
    if not str(folder):
        raise FileNotFoundError(f"--{flag} is empty: give a folder, or . for this one.")
    path = Path(folder)
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        kind = "a file" if there.exists() else "a link to nowhere"
        what = f"is {kind}" if there == path else f"cannot be created: {there} is {kind}"
        raise NotADirectoryError(f"--{flag} {folder} {what}: give a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--{flag} {folder}: nothing can be written in {there}. Give another folder.")


def check_output_file(flag: str, file: str | Path) -> None:
    """Raises an OSError if `file`, the value of `--flag`, is a folder or cannot be written. Creates nothing."""
    path = Path(file)
    if path.is_dir():
        raise IsADirectoryError(f"--{flag} {file} is a folder: give the name of a file.")
    check_output_folder(flag, path.parent)
