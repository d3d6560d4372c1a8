"""Task "peers" of `pvt-hf benchmark`: the classifier beside other runtimes and related models, see `benchmark.py`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import SwinConfig, SwinForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from ..metrics.costs import build_on_meta, count_costs, count_parameters
from ..metrics.timing import summarise
from ..models.modeling_pvt import PvtForImageClassification
from ..weights.exported import open_exported
from .benchmark_arguments import COMPILED, EXPORTED, RELATIVES, PeersArguments
from .benchmark_models import (
    FORWARD,
    TOLERANCE,
    RowError,
    Side,
    build_config,
    build_sides,
    compare,
    compile_sides,
    make_inputs,
    measure_matmul,
    peak_resident_bytes,
    run_once,
    time_sides,
)
from .benchmark_programs import RUNTIMES, Runtime, missing, program_of
from .benchmark_report import DisagreementError, choose_device, describe_environment, run_and_report, save
from .separate_process import ProcessEndedError, call_apart


MEMORY_CALLS = 3


class _TimmClassifier(nn.Module):
    """A timm model, called like one of Transformers."""

    def __init__(self, name: str):
        super().__init__()
        import timm

        self.model = timm.create_model(name, pretrained=False)

    def forward(self, images: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.model(images))


def build_relative(name: str) -> nn.Module:
    """A related model for 1000 classes at 224x224, with random weights."""
    return SwinForImageClassification(SwinConfig(num_labels=1000)) if name == "swin_tiny" else _TimmClassifier(name)


def build_side(row: dict[str, Any], arguments: Any, program: str | None) -> tuple[Side, Side]:
    """The side of a row, and the native class. `program` is what [`program_of`] returns."""
    name = row["row"]
    ours, native = build_sides("native", arguments)
    if name in EXPORTED:
        model = open_exported(Path(str(program)), trust_remote_code=True)  # written by this command
    elif name in RUNTIMES:
        model = Runtime(RUNTIMES[name], program, arguments.threads)
    elif name in RELATIVES:
        model = build_relative(name).to(arguments.device, getattr(torch, arguments.dtype))
    else:
        model = ours.model if name.startswith("ours") else native.model
    for each in (model, native.model):
        each.eval()
    return Side(name, model, model), native


def count_row(name: str, arguments: Any) -> dict[str, float]:
    """`gflop` of one image, 2 per multiply-add, and `parameters`. All ways to run PVT count the same."""
    if name in RELATIVES:
        model = build_on_meta(lambda: build_relative(name))
    else:
        model = build_on_meta(lambda: PvtForImageClassification(build_config(arguments)))
    size = arguments.image_size
    return {"gflop": count_costs(model, size, size).torch_flops / 1e9, "parameters": count_parameters(model)}


def measure_peak(side: Side, images: torch.Tensor, labels: torch.Tensor, device: str) -> int | None:
    """Peak memory of a few calls in bytes, less what is in use before; None where it cannot be measured."""

    def run() -> None:
        for _ in range(MEMORY_CALLS):
            run_once(side, FORWARD, images, labels)

    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return peak_resident_bytes(run) if os.access("/proc/self/clear_refs", os.W_OK) else None


def measure_row(row: dict[str, Any], arguments: Any, program: str | None, matmul: float) -> dict[str, Any]:
    """
    Measures one row. For a process of its own.

    Args:
        program: what [`program_of`] returns.
        matmul: rate of a large matmul, in 10^9 FLOP per second.

    Returns:
        `row` with `side` and `native` (median, quartiles and seconds of the calls; the side's images per second,
        memory and share of the matmul rate), `pairs`, `speed` and `speed_quartiles`; or with `error`, if this machine
        cannot run it, or with `disagreement`, if it computes something else than the native class.
    """
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    name = row["row"]
    images, labels = make_inputs(row, arguments)
    side, native = build_side(row, arguments, program)
    extra = {}
    try:
        if name in COMPILED:
            (extra,) = compile_sides([side], FORWARD, images, labels)
        extra["peak_memory_bytes"] = measure_peak(side, images, labels, arguments.device)
        if name not in RELATIVES:
            difference = compare([side, native], FORWARD, images, labels, tolerance_of(name, arguments.dtype))
            row = {**row, "relative_difference": difference}
        pairs = time_sides([side, native], FORWARD, images, labels, arguments, pause=arguments.pause)
    except DisagreementError as error:
        return {**row, "disagreement": str(error)}
    except (RowError, torch.OutOfMemoryError) as error:
        return {**row, "error": str(error)}
    first, second = zip(*pairs)
    summary, speed = summarise(first), summarise([b / a for a, b in pairs])
    rates = {
        "images_per_second": row["batch_size"] / summary["median"],
        "matmul_share": row["gflop"] * row["batch_size"] / summary["median"] / matmul,
    }
    return {
        **row,
        "side": {**summary, **rates, **extra, "seconds": first},
        "native": {**summarise(second), "seconds": second},
        "pairs": len(pairs),
        "speed": speed["median"],
        "speed_quartiles": speed["quartiles"],
    }


def tolerance_of(name: str, dtype: str) -> float:
    """Of a row, see [`compare`]. 8 bits may change a random model's logits by anything finite."""
    precision = EXPORTED[name].precision if name in EXPORTED else ""
    return {"bf16": TOLERANCE["bfloat16"], "int8": float("inf")}.get(precision, TOLERANCE[dtype])


def measure_or_explain(row: dict[str, Any], arguments: Any, folder: Path, matmul: float) -> dict[str, Any]:
    """
    Measures a row in a process of its own.

    Args:
        folder: see [`program_of`].

    Raises:
        DisagreementError: the row computes something else than the native class.
    """
    name = row["row"]
    if reason := missing(name):
        return {**row, "error": reason}
    if name in RUNTIMES and (arguments.device, arguments.dtype) != ("cpu", "float32"):
        return {**row, "error": f"{name} is measured with --device cpu --dtype float32 only"}
    row = {**row, **count_row(name, arguments)}
    try:
        result = call_apart(measure_row, row, arguments, program_of(row, arguments, folder), matmul)
    except ProcessEndedError as error:
        return {**row, "error": f"{error}; its message is above"}
    if "disagreement" in result:
        raise DisagreementError(result["disagreement"])
    return result


def plan_rows(arguments: Any) -> list[dict[str, Any]]:
    """
    The rows to measure: related models at the largest batch size, static exports with one image; compiled ones last,
    they take longest.
    """
    names, batch_sizes = dict.fromkeys(arguments.rows), dict.fromkeys(arguments.batch_sizes)
    rows = [
        {"row": name, "batch_size": batch_size, "height": arguments.image_size, "width": arguments.image_size}
        for batch_size, name in itertools.product(batch_sizes, names)
        if (name not in RELATIVES or batch_size == max(batch_sizes))
        and (batch_size == 1 or name not in EXPORTED or not EXPORTED[name].static)
    ]
    return sorted(rows, key=lambda row: row["row"] in COMPILED)


def format_row(row: dict[str, Any]) -> str:
    text = f"{row['row']:<25}{row['batch_size']:>5}  "
    if "error" in row:
        return f"{text}not measured: {row['error']}"
    side, (lower, upper) = row["side"], row["speed_quartiles"]
    memory, speed = side["peak_memory_bytes"], f"{row['speed']:.2f} [{lower:.2f}, {upper:.2f}]"
    return (
        f"{text}{1e3 * side['median']:9.1f}{side['images_per_second']:11.2f}   "
        f"{speed:<20}{row['pairs']:>5}  {side['matmul_share']:5.0%}"
        f"{'       ?' if memory is None else f'{memory / 2**20:8.0f}'}"
    )


def measure_rows(rows: list[dict[str, Any]], arguments: Any, results: dict[str, Any], folder: Path) -> None:
    """
    Measures the rows: adds each one to `results`, saves them and prints it. Raises a DisagreementError.

    Args:
        folder: for the programs that are exported.
    """
    start = time.perf_counter()
    results["matmul"] = matmul = measure_matmul(arguments.device, arguments.dtype)
    print(f"matmul {matmul['side']}x{matmul['side']} {arguments.dtype}: {matmul['gflop_per_second']:.1f} GFLOP/s")
    print(f"\n{'':<25}batch  ms a call   images/s   {'speed [quartiles]':<20}pairs  share  MiB")
    with tqdm(rows, disable=None, leave=False) as progress:
        for row in progress:
            if time.perf_counter() - start > 60 * arguments.max_minutes:
                progress.write(f"Stopped after --max_minutes {arguments.max_minutes:g}.")
                break
            progress.set_description(f"{row['row']}, batch {row['batch_size']}")
            result = measure_or_explain(row, arguments, folder, matmul["gflop_per_second"])
            results["rows"].append(result)
            save(results, arguments.output)
            progress.write(format_row(result))
    results["minutes"] = (time.perf_counter() - start) / 60


def draw(output: Path) -> None:
    """Draws the chart of the results in `output` beside them, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print('No chart: matplotlib is not installed: pip install "pvt-hf[benchmark]"')
        return
    from .benchmark_chart import draw_chart

    chart = draw_chart(output, output.with_suffix(".png"))
    print(f"Results: {output}" + (f", chart: {chart}" if chart else ""))


def run_rows(arguments: Any, programs: Path | None = None) -> int:
    """
    Measures the rows of `arguments`. Returns the exit code of [`run_and_report`].

    Args:
        programs: folder to keep exported programs in; None: they are removed at the end.
    """
    arguments.threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows = plan_rows(arguments)
    environment = describe_environment(arguments.device, arguments.threads)
    for package in ("onnxruntime", "openvino", "nncf", "timm"):
        if importlib.util.find_spec(package) is not None:
            environment[package] = importlib.metadata.version(package)
    with tempfile.TemporaryDirectory() as temporary:
        folder = programs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return run_and_report(
            arguments, environment, len(rows), lambda results: measure_rows(rows, arguments, results, folder)
        )


def benchmark_peers(arguments: PeersArguments) -> int:
    """Runs the task "peers" and draws the chart. Returns the exit code of [`run_and_report`]."""
    choose_device(arguments)
    code = run_rows(arguments)
    draw(arguments.output)
    return code
