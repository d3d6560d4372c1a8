"""Writing reports: JSON files that are complete or absent, undefined figures, versions."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def write_json(path: str | Path, content: Any) -> None:
    """
    Writes JSON, with null for undefined figures. The file appears complete or not at all.

    Raises:
        OSError: the file cannot be written. An existing one is unchanged then.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def without_nan(value: Any) -> Any:
    """Replaces NaN and infinite floats, at any depth, with None, because JSON has neither."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_metrics(metrics: dict[str, Any], digits: int = 4) -> list[str]:
    """NAME VALUE for each metric that is a number, and NAME undefined for None. Lists are left out."""

    def shown(value: float | None) -> str:
        if value is None:
            return "undefined"
        return str(value) if isinstance(value, int) else format(value, f".{digits}g")

    return [
        f"{name} {shown(value)}" for name, value in metrics.items() if value is None or isinstance(value, int | float)
    ]


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Versions of pvt_hf, Python, torch (with its build, such as "+cpu") and `packages`, by name."""
    from .. import __version__

    return {
        "pvt_hf": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }
