"""The files of an export: finds them, and compares them with what was exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .export_formats import ExportFormat, format_called
from .official_files import sha256_of
from .paths import EXPORT_MANIFEST, EXPORT_REPORT


LABELS = "labels.txt"


def read_export(folder: Path) -> tuple[ExportFormat, set[str], dict[str, str], dict[str, Any]]:
    """
    The format, the dtypes of the weights, the SHA-256 of each of the [`program_files`], and the report of an export
    whose files are as they were exported.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder cannot be read, or a file has another size or content than when it was exported.
    """
    name, files, dtypes = read_manifest(folder)
    kind = format_called(name)
    if kind is None:
        raise ValueError(f"{folder} is an export of the format {name!r}, which this version does not know.")
    report = read_report(folder)
    return kind, dtypes, check_files(folder, files, report.get("files", {})), report


def read_manifest(folder: Path) -> tuple[str, list[str], set[str]]:
    """
    The format's name in `export.json`, the program's files, and the dtypes of its weights.

    Raises:
        FileNotFoundError: a file is not in the folder.
        ValueError: the manifest cannot be read.
    """
    try:
        manifest = json.loads((folder / EXPORT_MANIFEST).read_text())
        name = manifest["export_format"]
        files = [component["file"] for component in manifest["components"].values()]
        dtypes = {component["metadata"]["export_dtype"] for component in manifest["components"].values()}
        # A path in a file that was downloaded must not lead out of the folder.
        away = next((file for file in files if Path(file).name != file), None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / EXPORT_MANIFEST} cannot be read: it is damaged and does not describe a program. Copy it again, "
            "or export the model again."
        ) from error
    if away is not None:
        raise FileNotFoundError(f"{folder} has no {away}, which its {EXPORT_MANIFEST} names: copy it again.")
    return name, files, dtypes


def read_report(folder: Path) -> dict[str, Any]:
    """
    The content of `export_report.json`; empty if there is none. Raises a ValueError if it cannot be read, or does not
    describe the program's files as [`describe_files`] does.
    """
    if not (folder / EXPORT_REPORT).is_file():
        return {}
    try:
        report = json.loads((folder / EXPORT_REPORT).read_text(encoding="utf-8"))
        if not isinstance(report, dict):
            raise TypeError(f"a {type(report).__name__}")
        for name, file in report.get("files", {}).items():
            if (type(file["bytes"]), type(file["sha256"])) != (int, str):
                raise TypeError(f"{name} has no size and SHA-256")
        return report
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder / EXPORT_REPORT} cannot be read: {error!r}. Copy it again, or export the model again."
        ) from error


def describe_files(folder: Path, files: list[str]) -> dict[str, dict[str, Any]]:
    """`{"bytes": size, "sha256": digest}` of each of the [`program_files`], by name."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in program_files(folder, files)
    }


def check_files(folder: Path, files: list[str], described: dict[str, dict[str, Any]]) -> dict[str, str]:
    """
    Compares the program's files with those that were exported: first their sizes, then their SHA-256, which reads
    all of them once.

    Args:
        files: that the manifest names.
        described: by [`describe_files`], when they were exported; empty if there is no report.

    Returns:
        The SHA-256 of each of the [`program_files`], by name.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has another size or content than when it was exported.
    """
    for name in dict.fromkeys([*files, *described]):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {name}, which belongs to the export: copy it again.")
        if name in described and path.stat().st_size != described[name]["bytes"]:
            raise ValueError(
                f"{path} has {path.stat().st_size:,} bytes, and had {described[name]['bytes']:,} when it was exported: "
                "copy it again."
            )
    digests = {path.name: sha256_of(path) for path in program_files(folder, files)}
    for name, digest in digests.items():
        if name in described and digest != described[name]["sha256"]:
            raise ValueError(
                f"{folder / name} is damaged: its SHA-256 is {digest}, and was {described[name]['sha256']} when it was "
                "exported: copy it again."
            )
    return digests


def check_labels(folder: Path, config: Any, classes: int | None) -> None:
    """
    Raises a FileNotFoundError if `labels.txt` is missing, and a ValueError if it, or `config.json`, has another number
    of names than the program has classes.

    Args:
        classes: of the model that was exported; None if it has none, or there is no report.
    """
    if classes is None:
        return
    labels = folder / LABELS
    if not labels.is_file():
        raise FileNotFoundError(f"{folder} has no {LABELS}, which belongs to the export: copy it again.")
    for file, names in (("config.json", len(config.id2label)), (LABELS, len(labels.read_bytes().splitlines()))):
        if names != classes:
            raise ValueError(f"The program in {folder} has {classes} classes, {file} names {names}: copy it again.")


def program_files(folder: Path, files: list[str]) -> list[Path]:
    """The program's files and those beside it: weights that are kept apart have the file's name first."""
    stems = {Path(file).stem for file in files}
    there = sorted(path for path in folder.iterdir() if path.is_file())
    return [path for path in there if path.name in files or path.name.partition(".")[0] in stems]
