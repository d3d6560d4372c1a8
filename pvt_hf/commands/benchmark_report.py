"""Shared by the tasks of `pvt-hf benchmark`: devices, and a report that survives Ctrl-C."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers


class DisagreementError(RuntimeError):
    """The two sides of a row compute different results, so their times cannot be compared."""


def choose_device(arguments: Any) -> None:
    """Replaces the `device` "auto" by one that is there. Raises a ValueError if CUDA is asked for and missing."""
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    elif arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but PyTorch sees no CUDA device: give --device cpu.")


def describe_environment(device: str, threads: int) -> dict[str, Any]:
    cpu_info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu_info.read_text()) if cpu_info.exists() else []
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "cpu": f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores",
        "threads": threads,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "pvt_hf": importlib.metadata.version("pvt-hf"),
    }


def save(results: dict[str, Any], output: Path | None) -> None:
    """Writes the results to a JSON file, which is replaced at once and never half-written."""
    if output is not None:
        temporary = output.with_name(output.name + ".tmp")
        temporary.write_text(json.dumps(results, indent=2, default=str))
        temporary.replace(output)


def run_and_report(
    arguments: Any, environment: dict[str, Any], num_rows: int, measure: Callable[[dict[str, Any]], None]
) -> int:
    """
    Prints the environment, and calls `measure` with the report: it appends to the report's `rows` and saves it after
    each row.

    Returns:
        The exit code: 0, 1 if the two sides of a row disagree, or 130 after Ctrl-C. Rows measured so far are saved to
        `arguments.output` in any case.
    """
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    results = {"complete": False, "arguments": asdict(arguments), "environment": environment, "rows": []}
    print("\n".join(f"{name}: {value}" for name, value in environment.items()))
    code = 0
    try:
        measure(results)
    except KeyboardInterrupt:
        print("Interrupted.")
        code = 130
    except DisagreementError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    results["complete"] = len(results["rows"]) == num_rows
    if not results["complete"]:
        print(f"Incomplete: {len(results['rows'])} of {num_rows} rows were measured.")
    save(results, arguments.output)
    return code
