"""
Checks whether a data set's name is a local path or a Hub id, and whether the Hub has it. Imports nothing heavy, so that
errors come at once.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path


BUILT_IN = ("digits", "digit-scenes")
SECONDS = 10  # for the answer of the Hub


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


def check_on_hub(source: str, flag: str = "dataset") -> None:
    """
    Says that a data set, which is neither built in nor a path, is looked for on the Hub, and asks the Hub for it. The
    other processes of a distributed run leave that to the first.

    Args:
        flag: the argument that names it, for messages.

    Raises:
        FileNotFoundError: the Hub does not have it, or cannot be asked, and it was never read from there.
    """
    if source in BUILT_IN or Path(source).exists() or int(os.environ.get("RANK") or 0):
        return
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    print(f"There is no folder {source} here: looking for the data set {source} on the Hub.", flush=True)
    similar = get_close_matches(source, [*BUILT_IN, *(path.name for path in Path().iterdir() if path.is_dir())], n=1)
    advice = f"Did you mean {similar[0]}?" if similar else "Give a folder, or a Hub id such as org/name."
    try:
        HfApi().dataset_info(source, timeout=SECONDS)
    except RepositoryNotFoundError:
        reason = "the Hub has no such data set, or it is private and you are not logged in."
    except HfHubHTTPError:
        return  # an answer that says nothing: reading it will show
    except Exception as error:  # of whichever library makes the connection
        if _was_read(source, Path(constants.HF_HUB_CACHE), Path(constants.HF_HOME)):
            return
        reason = f"the Hub cannot be asked: {(str(error).splitlines() or [type(error).__name__])[0].rstrip('.')}."
    else:
        return
    raise FileNotFoundError(f"--{flag} {source}: there is no such folder, and {reason} {advice}")


def _was_read(source: str, hub_cache: Path, home: Path) -> bool:
    """Whether `datasets` or the Hub's client keep files of a data set on this machine."""
    of_datasets = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    return (hub_cache / f"datasets--{source.replace('/', '--')}").is_dir() or (
        of_datasets / source.replace("/", "___")
    ).is_dir()
