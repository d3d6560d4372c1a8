"""`pvt-hf reproduce figure6`: multiply-adds, time and memory of a forward pass against the size of the image."""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..hub.published_costs import VARIANTS
from ..metrics.costs import build_on_meta, count_costs
from ..metrics.reports import write_json
from ..models.modeling_pvt import PvtForImageClassification
from ..weights.variants import get_config
from .benchmark_models import peak_resident_bytes
from .benchmark_report import describe_environment
from .reproduce_cost import write_csv
from .separate_process import ProcessEndedError, call_apart


COUNTED_ONLY = "ViT-Small/32"
COLUMNS = ("model", "size", "multiply_adds", "torch_flops", "seconds", "memory_bytes", "error")
ERRATUM = (
    "Erratum: the paper says of Figure 6 that the cost of ViT-Small/32 grows faster than that of PVT-Small. By its own "
    "formula, ViT-Small/32 costs less than PVT-Small at every size. The other claims hold: ViT-Small/16 costs most, "
    "PVT-Small more than ResNet50 at large sizes, and about as much up to 640 pixels."
)
# Okabe and Ito's palette, for colour-blind readers
COLORS = {"PVT-Small": "#D55E00", "ResNet50": "#0072B2", "ViT-Small/16": "#009E73", COUNTED_ONLY: "#009E73"}


def reproduce_figure6(arguments: argparse.Namespace) -> None:
    """
    Counts and measures every model at every size, prints a line for each, and writes the chart and the files. Results
    so far are written after each measurement.

    Raises:
        SystemExit: `--device cuda` without CUDA.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device. Use --device cpu.")
    threads = arguments.threads or torch.get_num_threads()
    environment = describe_environment(arguments.device, threads)
    rows: list[dict[str, Any]] = []
    print(
        f"{'model':<13}{'side':>6}{'GFLOPs':>10}{'seconds':>10}{'MiB':>8}   growth over the smallest: GFLOPs, time, MiB"
    )
    for model in (*arguments.models, COUNTED_ONLY):
        too_slow = ""
        for size in sorted(set(arguments.sizes)):
            costs = count_costs(build_on_meta(lambda: build(model, size)), size, size)  # noqa: B023  called at once
            row: dict[str, Any] = {"model": model, "size": size, "multiply_adds": costs.multiply_adds,
                                   "torch_flops": costs.torch_flops, "seconds": None, "memory_bytes": None,
                                   "error": too_slow}  # fmt: skip
            if model != COUNTED_ONLY and not too_slow:
                row |= measure_apart(model, size, arguments, threads)
                if row["seconds"] and row["seconds"] > arguments.max_seconds:
                    too_slow = f"not measured: a pass at {size} pixels took over {arguments.max_seconds:g} s"
            rows.append(row)
            print(line(row, rows), flush=True)
            report = {"environment": environment, "attention": arguments.attention, "repeats": arguments.repeats,
                      "erratum": ERRATUM, "growth": growth_lines(rows), "rows": rows}  # fmt: skip
            write_json(arguments.output_dir / "figure6.json", report)
            write_csv(arguments.output_dir / "figure6.csv", COLUMNS, rows)
    title = f"One forward pass, {environment['device']}, threads: {threads}, attention: {arguments.attention}"
    plot(rows, arguments.output_dir / "figure6.png", title)
    print("", *growth_lines(rows), "", ERRATUM, sep="\n")
    print(f"Written: figure6.png, figure6.csv and figure6.json in {arguments.output_dir}")


def build(model: str, size: int) -> nn.Module:
    """A classifier with random weights; a ViT is built for images of `size` pixels per side."""
    if model in VARIANTS:
        return PvtForImageClassification(get_config(VARIANTS[model]))
    from ..baselines.names import build_classifier

    return build_classifier(model, image_size=size)


def measure_apart(model: str, size: int, arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    """[`measure`] in a process of its own; `error` says why there is no result."""
    try:
        return call_apart(measure, model, size, arguments.attention, arguments.device, arguments.repeats, threads)
    except ProcessEndedError as error:
        killed = error.exit_code == -signal.SIGKILL
        return {"error": "out of memory" if killed else f"failed: {error}"}


@torch.no_grad()
def measure(model: str, size: int, attention: str, device: str, repeats: int, threads: int) -> dict[str, Any]:
    """
    Runs a model on one random image.

    Returns:
        `seconds`, the median of `repeats` passes; `memory_bytes`, the peak of the first pass less what was in use
        before it, or None where it cannot be measured; or `error` if the device has too little memory.
    """
    torch.set_num_threads(threads)
    classifier: Any = build(model, size).eval().to(device)
    if hasattr(classifier, "set_attn_implementation"):
        classifier.set_attn_implementation(attention)
    image = torch.randn(1, 3, size, size, device=device)
    try:
        memory = _peak(lambda: classifier(image), device)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            classifier(image)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            return {"error": "out of memory"}
        raise
    return {"seconds": statistics.median(seconds), "memory_bytes": memory}


def _peak(run: Any, device: str) -> int | None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not os.access("/proc/self/clear_refs", os.W_OK):
        run()
        return None
    return peak_resident_bytes(run)


def line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A row for the terminal, with its growth over the first row of the model."""
    first = next(one for one in rows if one["model"] == row["model"])
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.3f}"
    memory = "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:.0f}"
    growth = [
        f"x{row[key] / first[key]:.1f}" if row[key] and first[key] else ""
        for key in ("multiply_adds", "seconds", "memory_bytes")
    ]
    text = f"{row['model']:<13}{row['size']:>6}{row['multiply_adds'] / 1e9:>10.1f}{seconds:>10}{memory:>8}   "
    return (text + "".join(f"{one:>9}" for one in growth) + (f"   {row['error']}" if row["error"] else "")).rstrip()


def growth_lines(rows: list[dict[str, Any]]) -> list[str]:
    """For each model, whether time and memory grow as the multiply-adds do, from the smallest to the largest image."""
    lines = ["Growth of time and memory beside that of the multiply-adds (as much: within a tenth):"]
    for model in dict.fromkeys(row["model"] for row in rows):
        measured = [row for row in rows if row["model"] == model and row["seconds"]]
        if len(measured) < 2:
            continue
        first, last = measured[0], measured[-1]
        counted = last["multiply_adds"] / first["multiply_adds"]
        texts = []
        for key, name in (("seconds", "time"), ("memory_bytes", "memory")):
            if first[key] and last[key]:
                factor = last[key] / first[key]
                verdict = "more" if factor > 1.1 * counted else "as much" if factor > counted / 1.1 else "less"
                texts.append(f"{name} x{factor:.1f} ({verdict})")
        sides = f"{first['size']} to {last['size']} pixels"
        lines.append(f"  {model}, {sides}: multiply-adds x{counted:.1f}, {', '.join(texts)}")
    return lines


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Writes a PNG with three panels over the side of the image: GFLOPs, seconds and MiB, all logarithmic."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(12, 4.2), layout="constrained")
    panels = (
        ("multiply_adds", 1e9, "GFLOPs (multiply-adds)"),
        ("seconds", 1, "seconds"),
        ("memory_bytes", 2**20, "MiB"),
    )
    for axes, (key, unit, label) in zip(figure.subplots(1, 3), panels):
        for model, color in COLORS.items():
            points = [(row["size"], row[key] / unit) for row in rows if row["model"] == model and row[key]]
            if points:
                style = "--" if model == COUNTED_ONLY else "-"
                axes.plot(*zip(*points), marker=".", color=color, linestyle=style, label=model)
        axes.set(title=label, xlabel="side of the image in pixels", yscale="log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
