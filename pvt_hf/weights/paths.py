"""Whether a name is a folder here or a model on the Hub. Imports nothing heavy: arguments are checked with it."""

from __future__ import annotations

import re
from pathlib import Path


def check_model_path(model: str | Path) -> None:
    """
    Refuses a path without a model, before it is looked up on the Hub, where the error message would mislead.

    Raises:
        FileNotFoundError: `model` looks like a path and is not a folder, or is a folder to resume a training from.
    """
    name, path = str(model), Path(model)
    if path.is_dir():
        if (path / "loop_state.json").is_file() and not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"{name} is a checkpoint to resume a training from (--resume_from_checkpoint), not a model. A training "
                f"saves its model in {path.parent} when it ends."
            )
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
