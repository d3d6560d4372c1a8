"""Task "peers" of `pvt-hf benchmark`: the classifier beside other runtimes and related models, see `benchmark.py`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import SwinConfig, SwinForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from ..metrics.costs import build_on_meta, count_costs, count_parameters
from ..models.modeling_pvt import PvtForImageClassification
from .benchmark_arguments import COMPILED, RELATIVES, PeersArguments
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
from .benchmark_report import (
    DisagreementError,
    choose_device,
    describe_environment,
    run_and_report,
    save,
    summarise,
)
from .separate_process import ProcessEndedError, call_apart


# Packages of the extra "benchmark" that a row imports
NEEDS = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    **dict.fromkeys(("pvt_v2_b2", "twins_pcpvt_small", "resnet50"), ("timm",)),
}
RUNTIMES = ("onnxruntime", "openvino")
MEMORY_CALLS = 3


class Runtime(nn.Module):
    """
    The graph of an ONNX file in another runtime, called like a classifier.

    Args:
        name: "onnxruntime" or "openvino".
        graph: ONNX file with one input and one output, the logits.
        threads: number of CPU threads.
    """

    def __init__(self, name: str, graph: str, threads: int):
        super().__init__()
        self.run: Callable[[Any], Any]
        if name == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            # By default its threads go on spinning after a call, and would slow down the next call of the native class.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            (entry,) = session.get_inputs()
            self.run = lambda array: session.run(None, {entry.name: array})[0]
        else:
            import openvino

            # Without the hint it computes in bfloat16 where the CPU can.
            settings = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
            }
            compiled = openvino.Core().compile_model(graph, "CPU", settings)
            self.run = lambda array: compiled(array)[0]

    def forward(self, images: torch.Tensor) -> ImageClassifierOutput:
        """(batch, 3, height, width) float32, the size of the graph."""
        return ImageClassifierOutput(logits=torch.from_numpy(self.run(images.numpy())))


class _TimmClassifier(nn.Module):
    """A timm model, called like one of Transformers."""

    def __init__(self, name: str):
        super().__init__()
        import timm

        self.model = timm.create_model(name, pretrained=False)

    def forward(self, images: torch.Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.model(images))


class _Logits(nn.Module):
    """A classifier that returns a tensor, for export."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits


def build_relative(name: str) -> nn.Module:
    """A related model for 1000 classes at 224x224, with random weights."""
    return SwinForImageClassification(SwinConfig(num_labels=1000)) if name == "swin_tiny" else _TimmClassifier(name)


def export_native(graph: str, row: dict[str, Any], arguments: PeersArguments) -> None:
    """Writes the ONNX file of the native class for the size and batch size of `row`. For a process of its own."""
    model = _Logits(build_sides("native", arguments)[1].model).eval()
    images, _ = make_inputs(row, arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (images,), graph, dynamo=True, external_data=False, verbose=False)


def count_row(name: str, arguments: PeersArguments) -> dict[str, float]:
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


def measure_row(row: dict[str, Any], arguments: PeersArguments, graph: str | None, matmul: float) -> dict[str, Any]:
    """
    Measures one row. For a process of its own.

    Args:
        graph: ONNX file, for the rows that need it.
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
    ours, native = build_sides("native", arguments)
    if name.startswith("ours"):
        side = ours
    elif name.startswith("native"):
        side = Side("native", native.model, native.model)
    else:
        model = Runtime(name, graph, arguments.threads) if name in RUNTIMES else build_relative(name)
        model = model.to(arguments.device, getattr(torch, arguments.dtype))
        side = Side(name, model, model)
    side.name = name
    for each in (side, native):
        each.model.eval()
    extra = {}
    try:
        if name in COMPILED:
            (extra,) = compile_sides([side], FORWARD, images, labels)
        extra["peak_memory_bytes"] = measure_peak(side, images, labels, arguments.device)
        if name not in RELATIVES:
            row = {
                **row,
                "relative_difference": compare([side, native], FORWARD, images, labels, TOLERANCE[arguments.dtype]),
            }
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


def missing(name: str) -> str | None:
    """What a row needs and is not installed, with the line that installs it; None if nothing."""
    packages = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
    if not packages:
        return None
    return f'{" and ".join(packages)} not installed: pip install "pvt-hf[benchmark]"'


def measure_or_explain(
    row: dict[str, Any], arguments: PeersArguments, folder: str, graphs: dict[int, str], matmul: float
) -> dict[str, Any]:
    """
    Measures a row in a process of its own.

    Args:
        graphs: the ONNX files that are there, by batch size. A missing one is exported into `folder`.

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
        graph = None
        if name in RUNTIMES:
            graph = graphs.get(row["batch_size"]) or str(Path(folder) / f"native_{row['batch_size']}.onnx")
            if row["batch_size"] not in graphs:
                call_apart(export_native, graph, row, arguments)
                graphs[row["batch_size"]] = graph
        result = call_apart(measure_row, row, arguments, graph, matmul)
    except ProcessEndedError as error:
        return {**row, "error": f"{error}; its message is above"}
    if "disagreement" in result:
        raise DisagreementError(result["disagreement"])
    return result


def plan_rows(arguments: PeersArguments) -> list[dict[str, Any]]:
    """The rows to measure: related models at the largest batch size; compiled ones last, they take longest."""
    names, batch_sizes = dict.fromkeys(arguments.rows), dict.fromkeys(arguments.batch_sizes)
    rows = [
        {"row": name, "batch_size": batch_size, "height": arguments.image_size, "width": arguments.image_size}
        for batch_size, name in itertools.product(batch_sizes, names)
        if name not in RELATIVES or batch_size == max(batch_sizes)
    ]
    return sorted(rows, key=lambda row: row["row"] in COMPILED)


def format_row(row: dict[str, Any]) -> str:
    text = f"{row['row']:<19}{row['batch_size']:>5}  "
    if "error" in row:
        return f"{text}not measured: {row['error']}"
    side, (lower, upper) = row["side"], row["speed_quartiles"]
    memory, speed = side["peak_memory_bytes"], f"{row['speed']:.2f} [{lower:.2f}, {upper:.2f}]"
    return (
        f"{text}{1e3 * side['median']:9.1f}{side['images_per_second']:11.2f}   "
        f"{speed:<20}{row['pairs']:>5}  {side['matmul_share']:5.0%}"
        f"{'       ?' if memory is None else f'{memory / 2**20:8.0f}'}"
    )


def measure_rows(rows: list[dict[str, Any]], arguments: PeersArguments, results: dict[str, Any]) -> None:
    """Measures the rows: adds each one to `results`, saves them and prints it. Raises a DisagreementError."""
    start = time.perf_counter()
    results["matmul"] = matmul = measure_matmul(arguments.device, arguments.dtype)
    print(f"matmul {matmul['side']}x{matmul['side']} {arguments.dtype}: {matmul['gflop_per_second']:.1f} GFLOP/s")
    print(f"\n{'':<19}batch  ms a call   images/s   {'speed [quartiles]':<20}pairs  share  MiB")
    graphs: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(rows, disable=None, leave=False) as progress:
        for row in progress:
            if time.perf_counter() - start > 60 * arguments.max_minutes:
                progress.write(f"Stopped after --max_minutes {arguments.max_minutes:g}.")
                break
            progress.set_description(f"{row['row']}, batch {row['batch_size']}")
            result = measure_or_explain(row, arguments, folder, graphs, matmul["gflop_per_second"])
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


def benchmark_peers(arguments: PeersArguments) -> int:
    """Runs the task "peers" and draws the chart. Returns the exit code of [`run_and_report`]."""
    choose_device(arguments)
    arguments.threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows = plan_rows(arguments)
    environment = describe_environment(arguments.device, arguments.threads)
    for package in ("onnxruntime", "openvino", "timm"):
        if importlib.util.find_spec(package) is not None:
            environment[package] = importlib.metadata.version(package)
    code = run_and_report(arguments, environment, len(rows), lambda results: measure_rows(rows, arguments, results))
    draw(arguments.output)
    return code
