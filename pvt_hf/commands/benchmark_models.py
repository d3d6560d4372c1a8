"""Task "models" of `pvt-hf benchmark`: the model alone, see `benchmark.py`."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.models.pvt import PvtConfig as NativeConfig
from transformers.models.pvt import PvtForImageClassification as NativeClassifier

from ..metrics.timing import seconds_of, summarise, summarise_ratios, time_pairs
from ..models.configuration_pvt import PvtConfig
from ..models.modeling_pvt import PvtBackbone, PvtForImageClassification
from ..weights.variants import get_config, get_variant
from .benchmark_arguments import ModelsArguments, parse_size
from .benchmark_operators import format_operators, profile_call
from .benchmark_report import DisagreementError, choose_device, describe_environment, run_and_report, save
from .separate_process import ProcessEndedError, call_apart


FORWARD, FORWARD_BACKWARD = "forward", "forward+backward"
WARM_UP_SECONDS = 1.0
# Largest difference between two models with equal weights, relative to the largest value. Kernels (eager, SDPA,
# compiled) sum in different orders, and the native softmax is in the dtype of the model, ours in float32.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass
class Side:
    """One of the two models of a row. `call` is the model itself or its compiled version."""

    name: str
    model: PreTrainedModel
    call: Callable


class RowError(RuntimeError):
    """This machine cannot run a row, for example because it has no compiler. The next rows are measured anyway."""


def build_config(arguments: ModelsArguments) -> PvtConfig:
    # One epsilon for all norms, because the native class has only one
    return get_config(arguments.variant, image_size=arguments.image_size, reduction_layer_norm_eps=1e-6)


def build_backbone(arguments: ModelsArguments, attention: str) -> PvtBackbone:
    torch.manual_seed(0)
    model = PvtBackbone(get_config(arguments.variant, out_features=["stage1", "stage2", "stage3", "stage4"]))
    model.set_attn_implementation(attention)
    return model.to(arguments.device, getattr(torch, arguments.dtype))


def build_sides(section: str, arguments: ModelsArguments) -> list[Side]:
    """Builds the two models of a section with equal weights: the model of interest, then its reference."""
    if section == "attention":
        models = {attention: build_backbone(arguments, attention) for attention in ("sdpa", "eager")}
        return [Side(attention, model, model) for attention, model in models.items()]
    torch.manual_seed(0)
    first = PvtForImageClassification(build_config(arguments))
    first = first.to(arguments.device, getattr(torch, arguments.dtype))
    fields = get_variant(arguments.variant).config
    second = NativeClassifier(NativeConfig(**fields, image_size=arguments.image_size, layer_norm_eps=1e-6))
    second = second.to(arguments.device, getattr(torch, arguments.dtype))
    second.load_state_dict(first.state_dict())
    return [Side("ours", first, first), Side("native", second, second)]


def make_inputs(row: dict[str, Any], arguments: ModelsArguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes images (batch, 3, height, width) of noise and labels (batch,) int64, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(row["batch_size"], 3, row["height"], row["width"], generator=generator)
    labels = torch.arange(row["batch_size"])
    return images.to(arguments.device, getattr(torch, arguments.dtype)), labels.to(arguments.device)


def run_once(side: Side, mode: str, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    The call that is timed. Returns the logits, or the last feature map. With "forward+backward", gradients are left in
    the model, which must have had none before.
    """
    is_backbone = isinstance(side.model, PvtBackbone)
    with torch.set_grad_enabled(mode == FORWARD_BACKWARD):
        if mode == FORWARD or is_backbone:
            outputs = side.call(images)
        else:
            outputs = side.call(images, labels=labels)
    if mode == FORWARD_BACKWARD:
        loss = sum(each.square().mean() for each in outputs.feature_maps) if is_backbone else outputs.loss
        loss.backward()
    return (outputs.feature_maps[-1] if is_backbone else outputs.logits).detach()


def compare(sides: list[Side], mode: str, images: torch.Tensor, labels: torch.Tensor, tolerance: float) -> float:
    """
    Runs both models once, and returns the largest difference of their logits and gradients, relative to the largest
    logit and the largest gradient.

    Raises:
        DisagreementError: the difference exceeds `tolerance` or is NaN, or the models have gradients for different
            parameters.
    """
    values = []
    for side in sides:
        logits = run_once(side, mode, images, labels).float()
        gradients = {name: p.grad.float() for name, p in side.model.named_parameters() if p.grad is not None}
        values.append((logits, gradients))
        side.model.zero_grad()
    (first_logits, first_gradients), (second_logits, second_gradients) = values
    if first_gradients.keys() != second_gradients.keys():
        raise DisagreementError(f"{sides[0].name} and {sides[1].name} have gradients for different parameters.")
    difference = (first_logits - second_logits).abs().max() / second_logits.abs().max()
    if first_gradients:
        largest = max(gradient.abs().max() for gradient in second_gradients.values())
        differences = [(first_gradients[name] - second_gradients[name]).abs().max() for name in first_gradients]
        difference = max(difference, *(each / largest for each in differences))
    if not difference <= tolerance:
        raise DisagreementError(
            f"{sides[0].name} and {sides[1].name} disagree in {mode} of {tuple(images.shape)}: the largest difference "
            f"is {difference:.2g} of the largest value, more than the allowed {tolerance:.2g}. Nothing was timed."
        )
    return difference.item()


def compile_sides(sides: list[Side], mode: str, images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    """
    Compiles both models for these inputs. Returns `graph_breaks` and `compile_seconds` of each. Raises a RowError if
    the compiler fails.
    """
    report = []
    torch._dynamo.reset()
    for side in sides:
        counters.clear()
        side.call = torch.compile(side.model, dynamic=False)
        start = time.perf_counter()
        try:
            run_once(side, mode, images, labels)
        except Exception as error:  # whatever a compiler may raise
            reason = str(error).strip().partition("\n")[0]
            raise RowError(f"torch.compile of {side.name} failed with {type(error).__name__}: {reason}") from error
        side.model.zero_grad()
        graph_breaks = sum(counters["graph_break"].values())
        report.append({"graph_breaks": graph_breaks, "compile_seconds": time.perf_counter() - start})
    return report


def count_flops(row: dict[str, Any], arguments: ModelsArguments) -> int:
    """Counts the FLOP of one call, 2 per multiply-add, with tensors on the "meta" device."""
    # Not `with torch.device("meta")`: Ctrl-C inside of it ends with an error of PyTorch's.
    if row["section"] == "attention":
        model = build_backbone(replace(arguments, device="meta"), "eager")
    else:
        model = PvtForImageClassification(build_config(arguments)).to("meta")
        model.set_attn_implementation("eager")
    images = torch.empty(row["batch_size"], 3, row["height"], row["width"], device="meta")
    labels = torch.zeros(row["batch_size"], dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        run_once(Side("", model, model), row["mode"], images, labels)
    return counter.get_total_flops()


def measure_matmul(device: str, dtype: str) -> dict[str, Any]:
    """Measures the rate of a large square matmul, the best of several, in 10^9 FLOP per second."""
    side = 8192 if device == "cuda" else 2048
    first, second = torch.randn(2, side, side).to(device, getattr(torch, dtype))
    seconds, start = [], time.perf_counter()
    while len(seconds) < 5 or (time.perf_counter() - start < 3 and len(seconds) < 50):
        seconds.append(seconds_of(lambda: first @ second, device))
    return {"side": side, "repeats": len(seconds), "gflop_per_second": 2 * side**3 / min(seconds) / 1e9}


def resident_bytes(name: str) -> int:
    """Resident memory of this process in bytes, now ("VmRSS") or at its peak ("VmHWM"). Linux only."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def peak_resident_bytes(run: Callable[[], Any]) -> int:
    """How far resident memory rises during `run`, in bytes. (`ru_maxrss` would not do: it cannot be reset.)"""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present value
    before = resident_bytes("VmRSS")
    run()
    return resident_bytes("VmHWM") - before


def peak_of_call(arguments: ModelsArguments, attention: str, row: dict[str, Any]) -> int:
    """Peak memory of one call on a CPU, in bytes. For a process of its own."""
    torch.set_num_threads(arguments.threads)
    model = build_backbone(arguments, attention).train(row["mode"] == FORWARD_BACKWARD)
    side = Side(attention, model, model)
    run_once(side, row["mode"], *make_inputs({**row, "height": 64, "width": 64}, arguments))
    model.zero_grad()
    images, labels = make_inputs(row, arguments)
    return peak_resident_bytes(lambda: run_once(side, row["mode"], images, labels))


def measure_memory(side: Side, row: dict[str, Any], arguments: ModelsArguments) -> int | None:
    """
    Peak memory of one call in bytes (see the top of the file); None where it cannot be measured. Raises a RowError if
    the measuring process dies, for example for lack of memory.
    """
    if arguments.device == "cuda":
        images, labels = make_inputs(row, arguments)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(side, row["mode"], images, labels)
        torch.cuda.synchronize()
        side.model.zero_grad()
        return torch.cuda.max_memory_allocated() - before
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    try:
        return call_apart(peak_of_call, arguments, side.name, row)
    except ProcessEndedError as error:
        raise RowError(f"memory of {side.name} was not measured: {error}") from None


def time_sides(
    sides: list[Side], mode: str, images: torch.Tensor, labels: torch.Tensor, arguments: Any, pause: float = 0.0
) -> list[tuple[float, float]]:
    """The seconds of both sides in pairs of calls, see [`time_pairs`], with `pause` seconds before each call."""

    def time_pair() -> list[float]:
        pair = []
        for side in sides:
            time.sleep(pause)
            pair.append(seconds_of(lambda side=side: run_once(side, mode, images, labels), arguments.device))
            side.model.zero_grad()
        return pair

    return time_pairs(time_pair, WARM_UP_SECONDS, arguments.repeats, arguments.row_seconds)


def measure_row(row: dict[str, Any], sides: list[Side], arguments: ModelsArguments, matmul: float) -> dict[str, Any]:
    """
    Compares the two models, then warms them up and times pairs of calls.

    Args:
        matmul: rate of a large matmul, in 10^9 FLOP per second.

    Returns:
        `row` with the results, or with `error` if this machine cannot run it.

    Raises:
        DisagreementError: see [`compare`].
    """
    images, labels = make_inputs(row, arguments)
    mode = row["mode"]
    result = {**row, "gflop": count_flops(row, arguments) / 1e9}
    extra = [{}, {}]
    for side in sides:
        side.model.train(mode == FORWARD_BACKWARD)  # outputs stay equal, because there is no dropout
        side.model.zero_grad()  # gradients of an earlier row that failed
        side.call = side.model
    try:
        if row["section"] == "attention":
            extra = [{"peak_memory_bytes": measure_memory(side, row, arguments)} for side in sides]
        if row["compiled"]:
            extra = compile_sides(sides, mode, images, labels)
        result["relative_difference"] = compare(sides, mode, images, labels, TOLERANCE[arguments.dtype])

        pairs = time_sides(sides, mode, images, labels, arguments)
        if arguments.profile and not row["compiled"]:
            for side, more in zip(sides, extra):
                call = partial(run_once, side, mode, images, labels)
                more["operators"] = profile_call(call, arguments.device)
                side.model.zero_grad()
    except (RowError, torch.OutOfMemoryError) as error:
        return {**result, "error": str(error)}
    first, second = zip(*pairs)
    for side, seconds, more in zip(sides, (first, second), extra):
        summary = summarise(seconds)
        share = result["gflop"] / summary["median"] / matmul
        result[side.name] = {**summary, "matmul_share": share, **more, "seconds": seconds}
    return result | summarise_ratios([a / b for a, b in pairs])


def plan_rows(arguments: ModelsArguments) -> list[dict[str, Any]]:
    """The rows to measure. Compiled rows come last, because compiling takes long."""
    rows, compiled_rows = [], []
    if "native" in arguments.sections:
        side = arguments.image_size
        for mode, batch_size in itertools.product([FORWARD, FORWARD_BACKWARD], arguments.batch_sizes):
            row = {"section": "native", "mode": mode, "batch_size": batch_size, "height": side, "width": side}
            rows.append({**row, "compiled": False})
            compiled_rows.append({**row, "compiled": True})
    if "attention" in arguments.sections:
        modes = [FORWARD, FORWARD_BACKWARD] if arguments.attention_backward else [FORWARD]
        for mode, (height, width) in itertools.product(modes, map(parse_size, arguments.sizes)):
            row = {"section": "attention", "mode": mode, "batch_size": 1, "height": height, "width": width}
            rows.append({**row, "compiled": False})
    return rows if arguments.skip_compile else rows + compiled_rows


def format_row(row: dict[str, Any], names: tuple[str, str]) -> str:
    """Formats a row as a line of the table, with times in ms and memory in MiB."""
    label = f"{row['mode']}{', compiled' if row['compiled'] else ''}"
    text = f"{label:<27}{row['height']}x{row['width']:<6}{row['batch_size']:>4}  "
    if "error" in row:
        return f"{text}not measured: {row['error']}"
    sides = [row[name] for name in names]
    for side in sides:
        lower, upper = (1e3 * quartile for quartile in side["quartiles"])
        text += f"{1e3 * side['median']:8.1f} [{lower:.1f}, {upper:.1f}]".ljust(29)
    lower, upper = row["ratio_quartiles"]
    text += f"{row['ratio']:.3f} [{lower:.3f}, {upper:.3f}] {row['pairs']:>5}  "
    text += " / ".join(f"{side['matmul_share']:4.0%}" for side in sides)
    if row["section"] == "attention" and sides[0]["peak_memory_bytes"] is not None:
        text += "  memory " + " / ".join(f"{side['peak_memory_bytes'] / 2**20:.0f}" for side in sides)
    if "operators" in sides[0]:
        text += "".join(f"\n{format_operators(name, row[name]['operators'])}" for name in names)
    if row["compiled"]:
        text += "  graph breaks " + " / ".join(str(side["graph_breaks"]) for side in sides)
    return text


def measure_rows(rows: list[dict[str, Any]], arguments: ModelsArguments, results: dict[str, Any]) -> None:
    """
    Measures the rows: adds each one to `results`, saves them and prints it. Raises a DisagreementError, see
    [`compare`].
    """
    start = time.perf_counter()
    results["matmul"] = matmul = measure_matmul(arguments.device, arguments.dtype)
    print(f"matmul {matmul['side']}x{matmul['side']} {arguments.dtype}: {matmul['gflop_per_second']:.1f} GFLOP/s")
    section = None
    with tqdm(rows, disable=None, leave=False) as progress:  # only on a terminal
        for row in progress:
            if time.perf_counter() - start > 60 * arguments.max_minutes:
                progress.write(f"Stopped after --max_minutes {arguments.max_minutes:g}.")
                break
            progress.set_description(f"{row['section']} {row['mode']} {row['height']}x{row['width']}")
            if row["section"] != section:
                section, sides = row["section"], build_sides(row["section"], arguments)
                names = (sides[0].name, sides[1].name)
                first, second = (f"{name}, ms [quartiles]" for name in names)
                head = f"{section:<27}{'pixels':<10}batch  {first:<29}{second:<29}{'/'.join(names):<21}pairs  share"
                progress.write(f"\n{head}")
            result = measure_row(row, sides, arguments, matmul["gflop_per_second"])
            # Saved before it is printed, so that Ctrl-C cannot lose a row that was shown.
            results["rows"].append(result)
            save(results, arguments.output)
            progress.write(format_row(result, names))


def benchmark_models(arguments: ModelsArguments) -> int:
    """Runs the task "models". Returns the exit code of [`run_and_report`]."""
    choose_device(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    arguments.threads = torch.get_num_threads()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows = plan_rows(arguments)
    environment = describe_environment(arguments.device, arguments.threads)
    return run_and_report(arguments, environment, len(rows), lambda results: measure_rows(rows, arguments, results))
