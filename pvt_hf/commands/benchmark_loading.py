"""Task "loading" of `pvt-hf benchmark`: opening a checkpoint, and importing the package, see `benchmark.py`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import Any

import torch
from transformers.models.pvt import PvtForImageClassification as NativeClassifier

from ..metrics.timing import seconds_of, summarise, summarise_ratios, time_pairs
from ..models.modeling_pvt import PvtForImageClassification
from ..weights.variants import get_config
from .benchmark_arguments import LoadingArguments
from .benchmark_report import describe_environment, run_and_report, save


NUM_ROWS = 2
# Prints the seconds of the first import, then of the second, after it
TIME_IMPORTS = """
import time
start = time.perf_counter()
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import PreTrainedModel
between = time.perf_counter()
import pvt_hf
print(between - start, time.perf_counter() - between)
"""


def measure_checkpoint(arguments: LoadingArguments) -> dict[str, Any]:
    """Times `from_pretrained` of both classes on the same folder."""
    with tempfile.TemporaryDirectory() as folder:
        PvtForImageClassification(get_config(arguments.variant)).save_pretrained(folder)

        def time_pair() -> list[float]:
            classes = (PvtForImageClassification, NativeClassifier)
            return [seconds_of(lambda cls=cls: cls.from_pretrained(folder), "cpu") for cls in classes]

        pairs = time_pairs(time_pair, 1.0, arguments.repeats, arguments.row_seconds)
    ours, native = zip(*pairs)
    ratios = summarise_ratios([first / second for first, second in pairs])
    return {"row": "from_pretrained", "ours": summarise(ours), "native": summarise(native), **ratios}


def measure_import(arguments: LoadingArguments) -> dict[str, Any]:
    """Times, in new processes, what `import pvt_hf` adds to importing Transformers' Auto classes."""

    def time_pair() -> list[float]:
        result = subprocess.run([sys.executable, "-c", TIME_IMPORTS], capture_output=True, text=True, check=True)
        auto, ours = map(float, result.stdout.split())
        return [ours, auto]

    ours, auto = zip(*time_pairs(time_pair, 0.0, arguments.repeats, arguments.row_seconds))
    return {"row": "import", "ours": summarise(ours), "auto_classes": summarise(auto), "pairs": len(ours)}


def format_row(row: dict[str, Any]) -> str:
    def seconds(name: str) -> str:
        lower, upper = row[name]["quartiles"]
        return f"{row[name]['median']:.3f} s [{lower:.3f}, {upper:.3f}]"

    if row["row"] == "import":
        return (
            f"import pvt_hf: {seconds('ours')}, after the Auto classes: {seconds('auto_classes')}; {row['pairs']} pairs"
        )
    lower, upper = row["ratio_quartiles"]
    return (
        f"from_pretrained: ours {seconds('ours')}, native {seconds('native')}, "
        f"ours/native {row['ratio']:.3f} [{lower:.3f}, {upper:.3f}]; {row['pairs']} pairs"
    )


def measure_rows(arguments: LoadingArguments, results: dict[str, Any]) -> None:
    for measure in (measure_checkpoint, measure_import):
        row = measure(arguments)
        results["rows"].append(row)
        save(results, arguments.output)
        print(format_row(row))


def benchmark_loading(arguments: LoadingArguments) -> int:
    """Runs the task "loading". Returns the exit code of [`run_and_report`]."""
    environment = describe_environment("cpu", torch.get_num_threads())
    return run_and_report(arguments, environment, NUM_ROWS, lambda results: measure_rows(arguments, results))
