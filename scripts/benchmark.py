"""
Measures PVT on this machine, two things at a time in one process: A B A B ..., so that load from elsewhere meets both.

    python scripts/benchmark.py --output outputs/benchmark.json
    python scripts/benchmark.py models --device cuda --dtype bfloat16 --variant pvt-large
    python scripts/benchmark.py models --sections attention --sizes 512 800x1312
    python scripts/benchmark.py training
    python scripts/benchmark.py data

Task "training" measures whole training steps against the native class: see `benchmark_training.py`. Task "data"
measures the input pipeline: see `benchmark_data.py`. Task "models", which is the default:

Section "native": our classifier and that of plain Transformers with the same weights, at the size both are built for.
Section "attention": our classifier with SDPA and with eager attention, at the sizes of dense prediction, with memory.

Outputs are compared first, for forward+backward the gradients too: a run whose two models disagree stops.
Times are wall-clock times of one call (synchronised on CUDA): median and quartiles. The ratio is the
median of those of the pairs, below 1 where the first model is faster: load from elsewhere meets both of a pair.
The share is FLOP / median time over the rate of a large square matmul of the same device and dtype. FLOP, 2 per
multiply-add, are those of convolutions, linear layers and matrix products with eager attention, for both models.
float32 means float32: TF32 is off.
Memory is the peak of one call over what was there before it (the weights, a warmed-up library): of allocated tensors on
CUDA (`max_memory_allocated`), on the CPU of the resident memory of a process of its own (Linux only, else null).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import HfArgumentParser, PreTrainedModel
from transformers.models.pvt import PvtConfig as NativeConfig
from transformers.models.pvt import PvtForImageClassification as NativeClassifier

from pvt_hf import PvtConfig, PvtForImageClassification
from pvt_hf.weights.variants import VARIANTS, get_config, get_variant


sys.path.insert(0, str(Path(__file__).parent))  # for the files beside this one, where it is not run but loaded

from benchmark_report import (
    MIN_PAIRS,
    DisagreementError,
    check_arguments,
    describe_environment,
    run_and_report,
    save,
    summarise,
    summarise_ratios,
    time_pairs,
)


FORWARD, FORWARD_BACKWARD = "forward", "forward+backward"
WARM_UP_SECONDS = 1.0
# Largest difference of two models of equal weights, relative to the largest value: orders of summation (eager, SDPA,
# compiled kernels) differ, and native's softmax is in the dtype of the model, ours in float32.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


def parse_size(text: str) -> tuple[int, int]:
    """ "512" or "800x1312" to (height, width). Raises a ValueError for anything else, or below 32 pixels."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(height, width) < 32:
        raise ValueError(
            f"--sizes: {text!r} is no image size. Give one like 512 or 800x1312, at least 32 pixels a side."
        )
    return height, width


@dataclass
class ModelsArguments:
    """Measures PVT on this machine, two models at a time in one process."""

    output: Path | None = field(default=None, metadata={"help": "JSON file, written after every row."})
    variant: str = field(default="pvt-small", metadata={"help": "Which PVT.", "choices": list(VARIANTS)})
    device: str = field(
        default="auto", metadata={"help": "auto: CUDA if there is.", "choices": ["auto", "cpu", "cuda"]}
    )
    dtype: str = field(default="float32", metadata={"help": "Of weights and images.", "choices": list(TOLERANCE)})
    sections: list[str] = field(
        default_factory=lambda: ["native", "attention"],
        metadata={"help": "What to measure.", "choices": ["native", "attention"]},
    )
    skip_compile: bool = field(default=False, metadata={"help": "Section native without torch.compile."})
    image_size: int = field(default=224, metadata={"help": "Section native: side in pixels, a multiple of 32."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "Section native."})
    sizes: list[str] = field(
        default_factory=lambda: ["512", "800x1312", "1024"],
        metadata={"help": "Section attention: pixels, HEIGHTxWIDTH or one side; batch 1."},
    )
    attention_backward: bool = field(
        default=False, metadata={"help": "Section attention: forward+backward too, slow on a CPU."}
    )
    repeats: int = field(default=30, metadata={"help": "Most pairs per row."})
    row_seconds: float = field(
        default=12.0, metadata={"help": f"Time for the pairs of a row; at least {MIN_PAIRS} are run in any case."}
    )
    max_minutes: float = field(default=12.0, metadata={"help": "No row is started later than this."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads; by default PyTorch's choice."})

    def __post_init__(self):
        check_arguments(self)
        for size in self.sizes:
            parse_size(size)
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"--image_size must be a multiple of 32, got {self.image_size}.")
        if min(self.batch_sizes) < 1:
            raise ValueError(f"--batch_sizes must be at least 1, got {self.batch_sizes}.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}.")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        elif self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda, but PyTorch sees no CUDA device: give --device cpu.")


@dataclass
class Side:
    """One of the two models of a row; `call` is the model itself or what torch.compile made of it."""

    name: str
    model: PreTrainedModel
    call: Callable


class RowError(RuntimeError):
    """A row that this machine cannot run, for instance without a compiler. The others go on."""


def build_config(arguments: ModelsArguments) -> PvtConfig:
    # One epsilon for all norms, the only thing that the native class can do
    return get_config(arguments.variant, image_size=arguments.image_size, reduction_layer_norm_eps=1e-6)


def build_ours(arguments: ModelsArguments, attention: str) -> PvtForImageClassification:
    torch.manual_seed(0)
    model = PvtForImageClassification(build_config(arguments))
    model.set_attn_implementation(attention)
    return model.to(arguments.device, getattr(torch, arguments.dtype))


def build_sides(section: str, arguments: ModelsArguments) -> list[Side]:
    """The two models of a section, with equal weights: the one of interest, then what it is measured against."""
    first = build_ours(arguments, "sdpa")
    if section == "attention":
        second = build_ours(arguments, "eager")
        return [Side("sdpa", first, first), Side("eager", second, second)]
    fields = get_variant(arguments.variant).config
    second = NativeClassifier(NativeConfig(**fields, image_size=arguments.image_size, layer_norm_eps=1e-6))
    second = second.to(arguments.device, getattr(torch, arguments.dtype))
    second.load_state_dict(first.state_dict())
    return [Side("ours", first, first), Side("native", second, second)]


def make_inputs(row: dict[str, Any], arguments: ModelsArguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (batch, 3, height, width) of noise and labels (batch,), the same in every run."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(row["batch_size"], 3, row["height"], row["width"], generator=generator)
    labels = torch.arange(row["batch_size"])
    return images.to(arguments.device, getattr(torch, arguments.dtype)), labels.to(arguments.device)


def run_once(side: Side, mode: str, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What is timed. Returns the logits; gradients are left in the model, which must have had none."""
    if mode == FORWARD:
        with torch.no_grad():
            return side.call(images).logits
    outputs = side.call(images, labels=labels)
    outputs.loss.backward()
    return outputs.logits.detach()


def seconds_of(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(sides: list[Side], mode: str, images: torch.Tensor, labels: torch.Tensor, tolerance: float) -> float:
    """
    Runs both models once; returns the largest difference of logits and gradients, each relative to the largest of them.

    Raises a DisagreementError if it exceeds `tolerance` or is not a number.
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
            f"is {difference:.2g} of the largest value, {tolerance:.2g} is allowed. Nothing was timed."
        )
    return difference.item()


def compile_sides(sides: list[Side], mode: str, images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    """Compiles both for these inputs; returns graph breaks and seconds of each. Raises a RowError if one fails."""
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


def count_flops(config: PvtConfig, row: dict[str, Any]) -> int:
    """FLOPs of one call, 2 per multiply-add, counted on tensors without data."""
    with torch.device("meta"):
        model = PvtForImageClassification(config)
        model.set_attn_implementation("eager")
        images = torch.empty(row["batch_size"], 3, row["height"], row["width"])
        labels = torch.zeros(row["batch_size"], dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        run_once(Side("", model, model), row["mode"], images, labels)
    return counter.get_total_flops()


def measure_matmul(device: str, dtype: str) -> dict[str, Any]:
    """The best of several square matmuls, in 10^9 FLOP per second."""
    side = 8192 if device == "cuda" else 2048
    first, second = torch.randn(2, side, side).to(device, getattr(torch, dtype))
    seconds, start = [], time.perf_counter()
    while len(seconds) < 5 or (time.perf_counter() - start < 3 and len(seconds) < 50):
        seconds.append(seconds_of(lambda: first @ second, device))
    return {"side": side, "repeats": len(seconds), "gflop_per_second": 2 * side**3 / min(seconds) / 1e9}


def resident_bytes(name: str) -> int:
    """`name` (VmRSS: now, VmHWM: peak) of this process, from Linux."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def peak_resident_bytes(run: Callable[[], Any]) -> int:
    """How far resident memory rises above where it was while `run` runs. (`ru_maxrss` cannot be set back.)"""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    before = resident_bytes("VmRSS")
    run()
    return resident_bytes("VmHWM") - before


def send_peak_of_call(sender: Any, arguments: ModelsArguments, attention: str, row: dict[str, Any]) -> None:
    """The process in which one call's memory is measured on a CPU."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits for this one ends it
    torch.set_num_threads(arguments.threads)
    model = build_ours(arguments, attention).train(row["mode"] == FORWARD_BACKWARD)
    side = Side(attention, model, model)
    run_once(side, row["mode"], *make_inputs({**row, "height": 64, "width": 64}, arguments))
    model.zero_grad()
    images, labels = make_inputs(row, arguments)
    sender.send(peak_resident_bytes(lambda: run_once(side, row["mode"], images, labels)))


def measure_memory(side: Side, row: dict[str, Any], arguments: ModelsArguments) -> int | None:
    """Peak bytes of one call; see the top of the file. Raises a RowError if memory does not suffice."""
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
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_peak_of_call, args=(sender, arguments, side.name, row))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RowError(f"the process that measured memory of {side.name} ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def measure_row(row: dict[str, Any], sides: list[Side], arguments: ModelsArguments, matmul: float) -> dict[str, Any]:
    """
    Compares the two models, warms them up and times pairs of calls; `matmul` is the machine's GFLOP per second.

    Returns `row` with the results; a RowError becomes its `error`. Raises a DisagreementError as `compare` does.
    """
    images, labels = make_inputs(row, arguments)
    mode, device = row["mode"], arguments.device
    result = {**row, "gflop": count_flops(build_config(arguments), row) / 1e9}
    extra = [{}, {}]
    for side in sides:
        side.model.train(mode == FORWARD_BACKWARD)  # without any dropout: equal outputs all the same
        side.model.zero_grad()  # of a row that failed
        side.call = side.model
    try:
        if row["section"] == "attention":
            extra = [{"peak_memory_bytes": measure_memory(side, row, arguments)} for side in sides]
        if row["compiled"]:
            extra = compile_sides(sides, mode, images, labels)
        result["relative_difference"] = compare(sides, mode, images, labels, TOLERANCE[arguments.dtype])

        def time_pair() -> list[float]:
            pair = []
            for side in sides:
                pair.append(seconds_of(lambda side=side: run_once(side, mode, images, labels), device))
                side.model.zero_grad()
            return pair

        pairs = time_pairs(time_pair, WARM_UP_SECONDS, arguments.repeats, arguments.row_seconds)
    except (RowError, torch.OutOfMemoryError) as error:
        return {**result, "error": str(error)}
    first, second = zip(*pairs)
    for side, seconds, more in zip(sides, (first, second), extra):
        summary = summarise(seconds)
        share = result["gflop"] / summary["median"] / matmul
        result[side.name] = {**summary, "matmul_share": share, **more, "seconds": seconds}
    return result | summarise_ratios([a / b for a, b in pairs])


def plan_rows(arguments: ModelsArguments) -> list[dict[str, Any]]:
    """The rows to measure, those that have to be compiled (which takes long) last."""
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
    """One line of the table; times in ms, memory in MiB."""
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
    if row["compiled"]:
        text += "  graph breaks " + " / ".join(str(side["graph_breaks"]) for side in sides)
    return text


def measure_rows(rows: list[dict[str, Any]], arguments: ModelsArguments, results: dict[str, Any]) -> None:
    """Fills `results`, saves after each row and prints it. Raises a DisagreementError as `measure_row` does."""
    start = time.perf_counter()
    results["matmul"] = matmul = measure_matmul(arguments.device, arguments.dtype)
    print(f"matmul {matmul['side']}x{matmul['side']} {arguments.dtype}: {matmul['gflop_per_second']:.1f} GFLOP/s")
    section = None
    with tqdm(rows, disable=None, leave=False) as progress:  # only on a terminal
        for row in progress:
            if time.perf_counter() - start > 60 * arguments.max_minutes:
                progress.write(f"--max_minutes {arguments.max_minutes:g} are over.")
                break
            progress.set_description(f"{row['section']} {row['mode']} {row['height']}x{row['width']}")
            if row["section"] != section:
                section, sides = row["section"], build_sides(row["section"], arguments)
                names = (sides[0].name, sides[1].name)
                first, second = (f"{name}, ms [quartiles]" for name in names)
                head = f"{section:<27}{'pixels':<10}batch  {first:<29}{second:<29}{'/'.join(names):<21}pairs  share"
                progress.write(f"\n{head}")
            result = measure_row(row, sides, arguments, matmul["gflop_per_second"])
            # Kept before it is shown: Ctrl-C between the two must not lose a row that the user has seen.
            results["rows"].append(result)
            save(results, arguments.output)
            progress.write(format_row(result, names))


def benchmark_models(arguments: ModelsArguments) -> int:
    """Task "models". Returns the exit code: 0, 1 if two models disagree, 130 after Ctrl-C; what there is, is saved."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    arguments.threads = torch.get_num_threads()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows = plan_rows(arguments)
    environment = describe_environment(arguments.device, arguments.threads)
    return run_and_report(arguments, environment, len(rows), lambda results: measure_rows(rows, arguments, results))


def models_task() -> tuple[type, Callable[[Any], int]]:
    return ModelsArguments, benchmark_models


def data_task() -> tuple[type, Callable[[Any], int]]:
    from benchmark_data import DataArguments, benchmark_data  # needs the libraries of training

    return DataArguments, benchmark_data


def training_task() -> tuple[type, Callable[[Any], int]]:
    from benchmark_training import TrainingArguments, benchmark_training

    return TrainingArguments, benchmark_training


# The first word of the command line, "models" if there is none: the task's arguments, and what runs it
TASKS: dict[str, Callable[[], tuple[type, Callable[[Any], int]]]] = {
    "models": models_task,
    "data": data_task,
    "training": training_task,
}


def main() -> int:
    words = sys.argv[1:]
    task = words.pop(0) if words and words[0] in TASKS else "models"
    argument_class, run = TASKS[task]()
    parser = HfArgumentParser(argument_class, prog=f"benchmark.py {task}", description=argument_class.__doc__)
    try:
        (arguments,) = parser.parse_args_into_dataclasses(words)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.reconfigure(line_buffering=True)  # rows are seen as they come, in a file too
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
