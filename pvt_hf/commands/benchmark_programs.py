"""The programs that `pvt-hf benchmark` runs in other runtimes: the native class's graph, and exports of ours."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from ..export.accuracy import quantizer_for
from ..export.tracing import ExportOptions, trace
from ..weights.export_formats import EXPORT_FORMATS
from ..weights.whole_folder import folder_written_whole
from .benchmark_arguments import EXPORTED
from .benchmark_models import build_sides, make_inputs
from .separate_process import call_apart


# Packages of the extra "benchmark" that a row imports
NEEDS = {
    **dict.fromkeys(("onnxruntime", "native-onnxruntime"), ("onnx", "onnxscript", "onnxruntime")),
    **dict.fromkeys(("openvino", "native-openvino"), ("onnx", "onnxscript", "openvino")),
    **dict.fromkeys(("pvt_v2_b2", "twins_pcpvt_small", "resnet50"), ("timm",)),
}
# Rows that run the native class's ONNX graph, with the runtime
RUNTIMES = {name: name.removeprefix("native-") for name in NEEDS if name.endswith(("onnxruntime", "openvino"))}
CALIBRATION_IMAGES = 8  # of noise: enough for the speed of a model with random weights


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


class _Logits(nn.Module):
    """A classifier that returns a tensor, for export."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits


def export_native(path: str, row: dict[str, Any], arguments: Any) -> None:
    """Writes the ONNX file of the native class for the size and batch size of `row`. For a process of its own."""
    model = _Logits(build_sides("native", arguments)[1].model).eval()
    images, _ = make_inputs(row, arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (images,), f"{path}.new", dynamo=True, external_data=False, verbose=False)
    os.replace(f"{path}.new", path)


def export_ours(path: str, row: dict[str, Any], arguments: Any) -> None:
    """Writes the export of a row, as `pvt-hf export` does, into the new folder `path`. For a process of its own."""
    torch.set_num_threads(arguments.threads)  # which compiled code keeps
    wanted = EXPORTED[row["row"]]
    kind, size = EXPORT_FORMATS[wanted.format], (arguments.image_size, arguments.image_size)
    model: Any = build_sides("native", arguments)[0].model.eval()
    quantizer = None
    if wanted.precision == "int8":
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(CALIBRATION_IMAGES, 1, 3, *size, generator=generator)
        quantizer = quantizer_for(kind, [{"pixel_values": image} for image in images])
    options = ExportOptions(kind, size if wanted.static else None, wanted.precision, quantizer)
    with folder_written_whole(Path(path)) as folder:
        trace(model, options).save_pretrained(folder)
        model.config.save_pretrained(folder)


def missing(name: str) -> str | None:
    """What a row needs and is not there, with the line that installs it; None if nothing."""
    if name in EXPORTED:
        kind, precision = EXPORT_FORMATS[EXPORTED[name].format], EXPORTED[name].precision
        if precision == "bf16" and not torch.cpu._is_avx512_bf16_supported():
            return "this processor does not compute in bf16"
        return kind.missing(quantize=precision == "int8") or None
    packages = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
    if not packages:
        return None
    return f'{" and ".join(packages)} not installed: pip install "pvt-hf[benchmark]"'


def program_of(row: dict[str, Any], arguments: Any, folder: Path) -> str | None:
    """
    The ONNX file of the native class or the folder of our export that a row runs, exported into `folder` by a process
    of its own if it is not there yet; None for rows that run none.
    """
    name = row["row"]
    size = f"{arguments.variant}-{arguments.image_size}"
    if name in EXPORTED:
        path, export = folder / f"{size}-{name}", export_ours
    elif name in RUNTIMES:
        path, export = folder / f"{size}-native-{row['batch_size']}.onnx", export_native
    else:
        return None
    if not path.exists():
        call_apart(export, str(path), row, arguments)
    return str(path)
