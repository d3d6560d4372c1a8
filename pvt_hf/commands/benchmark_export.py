"""Task "export" of `pvt-hf benchmark`: the classifier's exports beside PyTorch, see `benchmark.py`."""

from __future__ import annotations

from .benchmark_arguments import ExportArguments
from .benchmark_peers import run_rows


def benchmark_export(arguments: ExportArguments) -> int:
    """Runs the task "export". Returns the exit code of [`run_rows`]."""
    return run_rows(arguments, arguments.programs)
