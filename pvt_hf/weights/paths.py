"""Whether a name is a folder here or a model on the Hub. Imports nothing heavy: arguments are checked with it."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub.utils import validate_repo_id


EXPORT_MANIFEST = "export.json"  # that of `transformers.exporters`


def is_exported(model: str | Path) -> bool:
    """Whether `model` is a folder that `pvt-hf export` has written."""
    return bool(str(model)) and Path(model, EXPORT_MANIFEST).is_file()


def check_model_path(model: str | Path) -> None:
    """
    Refuses a path without a model, before it is looked up on the Hub, where the error message would mislead.

    Raises:
        FileNotFoundError: `model` looks like a path and is not a folder, has no `config.json` (or is no adapter), or is
            a folder to resume a training from.
        NotADirectoryError: it is a file.
    """
    name, path = str(model), Path(model)
    if name and path.is_file():
        raise NotADirectoryError(
            f"{name} is a file: give a folder with config.json, or a Hub id such as org/name. (pvt-hf convert makes a "
            "folder of an official .pth file.)"
        )
    if name and path.is_dir() and not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
        if (path / "loop_state.json").is_file():
            raise FileNotFoundError(
                f"{name} is a checkpoint to resume a training from (--resume_from_checkpoint), not a model. A training "
                f"saves its model in {path.parent} when it ends."
            )
        inner = sorted(file.parent for file in path.glob("*/config.json"))
        found = f" ({', '.join(map(str, inner[:6]))} would do)" if inner else ""
        raise FileNotFoundError(f"{name} has no config.json, so it is no model folder{found}.")
    if name and path.is_dir():
        return
    in_folder = len(path.parts) > 1 and path.parent.is_dir()
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", path.name) and (in_folder or len(path.parts) == 1)
    if not is_checkpoint and not name.startswith((".", "/", "~")) and re.fullmatch(r"[^/\\]+(/[^/\\]+)?", name):
        return  # may be on the Hub
    there = sorted(file.parent for file in path.parent.glob("*/config.json")) if path.parent.is_dir() else []
    found = f" (there are {', '.join(map(str, there[:6]))})" if there else ""
    raise FileNotFoundError(
        f"There is no model folder {name}{found}: give a folder with config.json, or a Hub id such as org/name."
    )


def check_repo_id(repo_id: str) -> None:
    """Raises a ValueError unless `repo_id` is "organisation-or-user/name", in characters that the Hub allows."""
    try:
        validate_repo_id(repo_id)
        reason = "" if repo_id.count("/") == 1 else "it has no slash"
    except ValueError as error:
        reason = str(error)
    if reason:
        raise ValueError(f"{repo_id!r} is not a repository name, expected org/name, such as me/pvt-small: {reason}")
