"""Traces a model into a program, by `transformers.exporters`."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from ..weights.export_formats import ExportFormat
from ..weights.openvino_signals import keep_signal_stack, signals_at_the_end


# Of the images to trace with, if the size stays open. No side equals another, or the number of images: what is equal
# in the example may be taken for always equal.
TRACED_SIZE = (2, 224, 288)
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExportOptions:
    """
    What is exported.

    Attributes:
        format: see [`pvt_hf.weights.export_formats.EXPORT_FORMATS`].
        fixed_size: (height, width) in pixels; the program then takes one image of that size. None: any size and batch.
        precision: "fp32", "fp16", "bf16" or "int8".
        quantizer: of `transformers.exporters`, for int8.
    """

    format: ExportFormat
    fixed_size: tuple[int, int] | None = None
    precision: str = "fp32"
    quantizer: Any = None


def takes_mask(model: PreTrainedModel) -> bool:
    """Whether a model takes a `pixel_mask`, as detectors do."""
    return "pixel_mask" in inspect.signature(model.forward).parameters


def example_inputs(model: PreTrainedModel, batch: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """Inputs of the given shape, of zeros. The mask says that nothing is padded."""
    channels = getattr(getattr(model.config, "backbone_config", None) or model.config, "num_channels", 3)
    inputs = {"pixel_values": torch.zeros(batch, channels, height, width)}
    if takes_mask(model):
        inputs["pixel_mask"] = torch.ones(batch, height, width, dtype=torch.int64)
    return inputs


def open_sizes(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Dynamic shapes for `torch.export`: batch, height and width stay open, the number of channels does not."""
    dim = torch.export.Dim
    return {name: {axis: dim.AUTO for axis in range(value.ndim) if value.ndim != 4 or axis != 1}
            for name, value in inputs.items()}  # fmt: skip


def trace(model: PreTrainedModel, options: ExportOptions) -> Any:
    """
    Exports a model.

    Args:
        model: in fp32 and eval mode, on the CPU. It is not changed.

    Returns:
        A `transformers.exporters.ExportedModel`.

    Raises:
        ValueError: the model cannot be exported to this format. The message is one line.
    """
    height, width = options.fixed_size or TRACED_SIZE[1:]
    inputs = example_inputs(model, 1 if options.fixed_size else TRACED_SIZE[0], height, width)
    exporter, config = exporter_of(options)
    if options.fixed_size is None:
        config.dynamic_shapes = open_sizes(inputs)
    config.quantizer = options.quantizer
    if options.precision in HALF:
        model = copy.deepcopy(model).to(HALF[options.precision])  # type: ignore[arg-type]  # of all models, which torch overloads
    with quiet(), attention_for(options.format, model), keep_signal_stack(), signals_for(options.format):
        try:
            exported = exporter.export(model, inputs, config)
            if options.format.name == "onnx":
                forget_sources(exported.program)
            for part in exported.components.values() if options.precision in HALF else ():
                # OpenVINO's exporter says float32, and OpenVINO would compute in it: see `runtime_options`
                part.metadata.export_dtype = str(HALF[options.precision]).removeprefix("torch.")
            return exported
        except Exception as error:  # torch.export and the converters raise a dozen types
            lines = [line.lstrip("- ") for line in str(error).splitlines() if line.strip()] or [""]
            # OpenVINO names the operations that it lacks in its last lines
            line = next((line for line in lines if line.startswith("No conversion rule")), lines[0])
            reason = f"{type(error).__name__}: {line}"
            raise ValueError(
                f"{type(model).__name__} cannot be exported to {options.format.title}: {reason}"
            ) from error


@contextlib.contextmanager
def attention_for(kind: ExportFormat, model: PreTrainedModel) -> Iterator[None]:
    """
    Traces eager attention for ONNX, which has no operator for `scaled_dot_product_attention`: PyTorch spells it out,
    and with open sizes a quarter more nodes than eager attention come out. The other formats have the operator.
    """
    before = model.config._attn_implementation
    if kind.name == "onnx":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def signals_for(kind: ExportFormat) -> contextlib.AbstractContextManager[None]:
    return signals_at_the_end() if kind.name == "openvino" else contextlib.nullcontext()


def exporter_of(options: ExportOptions) -> tuple[Any, Any]:
    """The exporter for a format and its configuration."""
    from transformers import exporters

    from ..weights.torch_programs import AotInductorConfig, AotInductorExporter

    kinds = {
        "onnx": ("OnnxExporter", "OnnxConfig"),
        "openvino": ("OpenVINOExporter", "OpenVINOConfig"),
        "executorch": ("ExecutorchExporter", "ExecutorchConfig"),
        "torch": ("DynamoExporter", "DynamoConfig"),
    }
    with quiet():
        if options.format.name == "aotinductor":
            return AotInductorExporter(), AotInductorConfig()
        exporter, config = (getattr(exporters, name) for name in kinds[options.format.name])
        return exporter(), config()


def forget_sources(program: Any) -> None:
    """Removes what PyTorch notes at each node of an ONNX graph: lines of code, with paths of this machine."""
    for node in program.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what exporters say about themselves: versions they were tested with, steps, deprecations."""
    verbosity, level = transformers.utils.logging.get_verbosity(), logging.root.manager.disable
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        transformers.utils.logging.set_verbosity(verbosity)
