"""Task "allocator" of `pvt-hf benchmark`: what keeping freed memory gives and costs, see `benchmark.py`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from ..metrics.timing import seconds_of, summarise, summarise_ratios, time_pairs
from ..models.configuration_semantic_fpn import SemanticFpnConfig
from ..models.image_processing_semantic import PvtSemanticImageProcessor
from ..models.modeling_pvt import PvtForImageClassification
from ..models.modeling_semantic_fpn import SemanticFpnForSemanticSegmentation
from ..weights.variants import get_config
from .allocator import keep_freed_memory
from .benchmark_arguments import AllocatorArguments
from .benchmark_models import RowError, resident_bytes
from .benchmark_report import describe_environment, run_and_report, save


WARM_UP_CALLS = 2
SIDES = ("default", "kept")
# Name, height and width in pixels, images
ROWS = (("forward", 224, 1), ("forward", 224, 8), ("training", 224, 16), ("segmentation", 512, 1))


def build_call(row: str, variant: str, size: int, batch_size: int) -> Callable[[], Any]:
    """The call that a row repeats, on noise."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, size, size)
    if row == "forward":
        model = PvtForImageClassification(get_config(variant)).eval()
        return torch.inference_mode()(lambda: model(images))
    if row == "training":
        model = PvtForImageClassification(get_config(variant)).train()
        optimizer = torch.optim.AdamW(model.parameters())
        labels = torch.arange(batch_size)

        def step() -> None:
            model(images, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = SemanticFpnConfig(backbone_config=get_config(variant, out_features=stages), num_labels=150)
    segmenter, processor = SemanticFpnForSemanticSegmentation(config).eval(), PvtSemanticImageProcessor()
    photos = list(np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8))

    def segment() -> None:
        outputs = segmenter(**processor(photos, return_tensors="pt"))
        processor.post_process_semantic_segmentation(outputs, target_sizes=[(size, size)] * batch_size)

    return torch.inference_mode()(segment)


def serve(connection: Connection, keep: bool, threads: int, call: tuple[Any, ...]) -> None:
    """Answers each message with the seconds of a call and the resident memory after it. Runs in its own process."""
    if keep and not keep_freed_memory(on_cpu=True):
        connection.send("the C library is not glibc, or variables such as MALLOC_TRIM_THRESHOLD_ are set")
        return
    torch.set_num_threads(threads)
    run = build_call(*call)
    for _ in range(WARM_UP_CALLS):
        run()
    connection.send("")
    try:
        while connection.recv():
            connection.send((seconds_of(run, "cpu"), resident_bytes("VmRSS")))
    except EOFError:  # the command has ended
        return


def measure_processes(row: dict[str, Any], arguments: AllocatorArguments) -> tuple[list[tuple[float, float]], Any]:
    """The seconds of two new processes that take turns, in pairs, and their resident memory at the end."""
    context = multiprocessing.get_context("spawn")
    call = (row["row"], arguments.variant, row["size"], row["batch_size"])
    memory: dict[str, int] = {}
    with ExitStack() as stack:
        connections = {}
        for side in SIDES:
            connections[side], other = context.Pipe()
            process = context.Process(target=serve, args=(other, side == "kept", arguments.threads, call), daemon=True)
            process.start()
            stack.callback(process.join)  # after it was killed
            stack.callback(process.kill)
            other.close()
        for connection in connections.values():
            if reason := connection.recv():
                raise RowError(reason)

        order = list(SIDES)

        def time_pair() -> list[float]:
            pair = {}
            order.reverse()  # in turn, each side is the first of a pair
            for side in order:
                time.sleep(arguments.pause)
                connections[side].send(True)
                pair[side], memory[side] = connections[side].recv()
            return [pair[side] for side in SIDES]

        seconds = arguments.row_seconds / arguments.processes
        return time_pairs(time_pair, 0.0, arguments.repeats, seconds), memory


def measure_row(row: dict[str, Any], arguments: AllocatorArguments) -> dict[str, Any]:
    """Times pairs of calls in several pairs of processes: how memory is laid out differs from process to process."""
    pairs: list[tuple[float, float]] = []
    by_processes: list[float] = []
    memory: dict[str, int] = {}
    try:
        for _ in range(arguments.processes):
            found, memory = measure_processes(row, arguments)
            pairs += found
            by_processes.append(summarise([first / second for first, second in found])["median"])
    except RowError as error:
        return {**row, "error": str(error)}
    except (EOFError, ConnectionError):
        return {**row, "error": "a process ended; its message, if any, is above"}
    default, kept = zip(*pairs)
    return {
        **row,
        "default": {**summarise(list(default)), "resident_bytes": memory["default"]},
        "kept": {**summarise(list(kept)), "resident_bytes": memory["kept"]},
        "processes": by_processes,
        **summarise_ratios([first / second for first, second in pairs]),
    }


def format_row(row: dict[str, Any]) -> str:
    text = f"{row['row']:<13}{row['size']:>4}{row['batch_size']:>6}  "
    if "error" in row:
        return f"{text}not measured: {row['error']}"
    lower, upper = row["ratio_quartiles"]
    medians = ", ".join(f"{median:.2f}" for median in row["processes"])
    sides = "  ".join(f"{1e3 * row[side]['median']:7.1f}{row[side]['resident_bytes'] / 2**20:7.0f}" for side in SIDES)
    return f"{text}{row['ratio']:.3f} [{lower:.3f}, {upper:.3f}] {row['pairs']:>5}  {sides}  {medians}"


def measure_rows(arguments: AllocatorArguments, results: dict[str, Any]) -> None:
    print("\ncall         size batch  default / kept       pairs  ms, MiB: default, kept        by pairs of processes")
    for name, size, batch_size in ROWS:
        if name in arguments.rows:
            row = measure_row({"row": name, "size": size, "batch_size": batch_size}, arguments)
            results["rows"].append(row)
            save(results, arguments.output)
            print(format_row(row))


def benchmark_allocator(arguments: AllocatorArguments) -> int:
    """Runs the task "allocator". Returns the exit code of [`run_and_report`]."""
    arguments.threads = arguments.threads or torch.get_num_threads()
    count = sum(name in arguments.rows for name, _, _ in ROWS)
    environment = describe_environment("cpu", arguments.threads)
    return run_and_report(arguments, environment, count, lambda results: measure_rows(arguments, results))
