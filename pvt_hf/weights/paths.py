"""
What a name of a model stands for: a folder here, a model on the Hub, "official:pvt-small" (the official release) or
"sample:digits-segmenter" (a model in this package). Imports nothing heavy: arguments are checked with it.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from .variants import RELEASED


OFFICIAL, SAMPLE = "official:", "sample:"
SAMPLES = Path(__file__).parents[1] / "samples"


def official_variant(model: str | Path) -> str | None:
    """
    The variant that "official:NAME" names, such as "pvt-small"; None for other models. Raises a FileNotFoundError for a
    variant without released weights.
    """
    if not str(model).startswith(OFFICIAL):
        return None
    name = str(model).removeprefix(OFFICIAL)
    if name not in RELEASED:
        known = ", ".join(f"{OFFICIAL}{variant}" for variant in RELEASED)
        raise FileNotFoundError(f"The official release has no {model}: choose one of {known}.")
    return name


def sample(name: str) -> str:
    """
    The folder of a small trained model that is part of this package: model, image processor, card and `run.json`.

    Args:
        name: "digits-segmenter" (Semantic FPN) or "digits-detector" (Mask R-CNN), for scenes of handwritten digits.

    Returns:
        The folder, for `from_pretrained` and `pipeline`:
        `pipeline("image-segmentation", model=sample("digits-segmenter"))`.

    Raises:
        FileNotFoundError: there is no such model; the message lists them.
    """
    known = sorted(path.parent.name for path in SAMPLES.glob("*/config.json"))
    if name not in known:
        raise FileNotFoundError(f"There is no sample {name!r}: choose one of {', '.join(known)}.")
    return str(SAMPLES / name)


def folder_or_id(model: str | Path) -> str:
    """The folder of "sample:NAME"; any other name as given."""
    name = str(model)
    return sample(name.removeprefix(SAMPLE)) if name.startswith(SAMPLE) else name


EXPORT_MANIFEST = "export.json"  # that of `transformers.exporters`
EXPORT_REPORT = "export_report.json"  # ours, beside it


def is_exported(model: str | Path) -> bool:
    """Whether `model` is a folder that `pvt-hf export` has written."""
    return bool(str(model)) and Path(model, EXPORT_MANIFEST).is_file()


def check_model_path(model: str | Path) -> None:
    """
    Refuses a path without a model, before it is looked up on the Hub, where the error message would mislead.

    Raises:
        FileNotFoundError: `model` looks like a path and is not a folder, has no `config.json` (or is no adapter), or is
            a folder to resume a training from, or an export without its manifest; or there is no such official release
            or sample.
        NotADirectoryError: it is a file.
    """
    if official_variant(model):
        return
    name, path = folder_or_id(model), Path(folder_or_id(model))
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
        if (path / EXPORT_REPORT).is_file() and not is_exported(path):
            raise FileNotFoundError(f"{name} has no {EXPORT_MANIFEST}, which belongs to the export: copy it again.")
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
