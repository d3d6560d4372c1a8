"""Checks whether a data set's name is a local path or may be a Hub id. Imports nothing heavy, for quick errors."""

from __future__ import annotations

import re
from pathlib import Path


def check_dataset_path(source: str, file_endings: tuple[str, ...] = ()) -> None:
    """
    Refuses a path that does not exist, before it is looked up on the Hub, where the error message would mislead.

    Args:
        file_endings: of files that stand for a data set.

    Raises:
        FileNotFoundError: `source` looks like a path that does not exist, or is empty.
        NotADirectoryError: it is another file.
    """
    if source and Path(source).is_dir():
        return
    if source and Path(source).exists():
        if source.lower().endswith(file_endings):
            return
        raise NotADirectoryError(f"--dataset {source} is a file: give a folder of images, parquet files or tars.")
    if not source.startswith((".", "/", "~")) and re.fullmatch(r"[^/\\]+(/[^/\\]+)?", source):
        return  # built in, or may be on the Hub
    parent = Path(source).parent
    there = sorted(path.name for path in parent.iterdir() if path.is_dir())[:6] if source and parent.is_dir() else []
    found = f" ({parent} has {', '.join(there)})" if there else ""
    raise FileNotFoundError(
        f"--dataset {source!r}: there is no such folder{found}. Give a folder, or a Hub id such as org/name."
    )
