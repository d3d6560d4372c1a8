"""
Runs exported models: folders that `pvt-hf export` has written, which are those of
`transformers.exporters.ExportedModel` with the image processor and `export_report.json` beside the program.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ..families import FAMILIES, load
from .export_files import check_labels, read_export, read_manifest
from .paths import EXPORT_MANIFEST, check_model_path, folder_or_id, is_exported, official_variant
from .trust import check_trust


OPENVINO_PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class ExportedForInference(nn.Module):
    """
    An exported program that is called like the model it came from, and answers like it: on a pipeline, in evaluation.
    It has no parameters and cannot be trained.

    A program for one size (`--static`) takes batches, too, and runs on one image after the other.

    Args:
        exported: a `transformers.exporters.ExportedModel`.
        parameters: number of parameters of the model it came from.
        digest: of its files.
        smallest_side: height and width in pixels, below which it was not found equal to the model.
    """

    main_input_name = "pixel_values"
    input_modalities = ["image"]

    def __init__(self, exported: Any, parameters: int = 0, digest: str = "", smallest_side: int = 1):
        super().__init__()
        self.exported, self.parameters_of_model, self.digest = exported, parameters, digest
        self.smallest_side = smallest_side
        self.config: PreTrainedConfig = exported.config
        (component,) = exported.components.values()
        self.inputs: dict[str, dict[str, Any]] = component.metadata.kwargs
        settings = component.metadata.export_config
        fixed = not settings.get("dynamic") and not settings.get("dynamic_shapes")
        self.fixed_shape = tuple(self.inputs["pixel_values"]["shape"]) if fixed else None

    @property
    def device(self) -> torch.device:
        """Where it takes its inputs from; they are brought there."""
        return self.exported.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its inputs."""
        return getattr(torch, self.inputs["pixel_values"]["dtype"])

    def to(self, device: Any = None, *_: Any, **__: Any) -> ExportedForInference:  # type: ignore[override]
        """Moves it to another device. Raises a ValueError if its runtime cannot use that device."""
        if device is not None and torch.device(device) != self.device:
            self.exported.to(torch.device(device))
        return self

    def can_generate(self) -> bool:
        return False

    def num_parameters(self) -> int:
        """Of the model it came from."""
        return self.parameters_of_model

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> Any:
        """
        Args:
            pixel_values: (batch, channels, height, width), of any float dtype, on any device.
            pixel_mask: (batch, height, width), for detectors; without it, nothing is padded.

        Returns:
            The output of the model that was exported. Floats are fp32.

        Raises:
            ValueError: the program is for images of another size (those of a detector may be smaller), or with other
                channels; or there is no image, or images are smaller than the model takes.
        """
        self._check(pixel_values)
        given = {"pixel_values": pixel_values}
        if "pixel_mask" in self.inputs:
            shape = (pixel_values.shape[0], *pixel_values.shape[-2:])
            given["pixel_mask"] = torch.ones(shape, dtype=torch.int64) if pixel_mask is None else pixel_mask
        if self.fixed_shape is not None:
            given = self._at_fixed_size(given)
        given = {
            name: value.to(self.device, getattr(torch, self.inputs[name]["dtype"])) for name, value in given.items()
        }
        if self.fixed_shape is None:
            return as_fp32(self.exported(**given))
        images = range(pixel_values.shape[0])
        answers = [self.exported(**{name: value[i : i + 1] for name, value in given.items()}) for i in images]
        return as_fp32(joined(answers))

    def _check(self, pixel_values: torch.Tensor) -> None:
        """Raises a ValueError for what runtimes would name by a node of the graph, or answer with nonsense."""
        channels = self.inputs["pixel_values"]["shape"][1]
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels or not len(pixel_values):
            raise ValueError(
                f"pixel_values must be (batch, {channels}, height, width) with at least one image, got "
                f"{tuple(pixel_values.shape)}."
            )
        backbone = getattr(self.config, "backbone_config", None) or self.config
        minimum = max(getattr(backbone, "minimum_image_size", 1), 1 if self.fixed_shape else self.smallest_side)
        height, width = pixel_values.shape[-2:]
        if min(height, width) < minimum:
            raise ValueError(
                f"pixel_values is {height}x{width} pixels, but this export takes images of at least {minimum}x{minimum}"
                ": resize or pad them."
            )

    def _at_fixed_size(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pads the images of a detector at the right and bottom, as its image processor does for batches."""
        assert self.fixed_shape is not None
        (height, width), (rows, columns) = self.fixed_shape[-2:], given["pixel_values"].shape[-2:]
        if (rows, columns) == (height, width):
            return given
        if "pixel_mask" not in given or rows > height or columns > width:
            raise ValueError(
                f"This export takes images of {height}x{width} pixels only, got {rows}x{columns}: prepare them with "
                "the image processor in its folder, or export without --static."
            )
        padding = (0, width - columns, 0, height - rows)
        return {name: nn.functional.pad(value, padding) for name, value in given.items()}


def joined(answers: list[Any]) -> Any:
    """The outputs for single images as that for a batch. Outputs of one image are returned as they are."""
    if len(answers) == 1:
        return answers[0]
    leaves, spec = zip(*(torch.utils._pytree.tree_flatten(answer) for answer in answers))
    together = [torch.cat(parts) if isinstance(parts[0], torch.Tensor) else parts[0] for parts in zip(*leaves)]
    return torch.utils._pytree.tree_unflatten(together, spec[0])


def as_fp32(output: Any) -> Any:
    """An output with its fp16 and bf16 tensors as fp32."""
    leaves, spec = torch.utils._pytree.tree_flatten(output)
    half = (torch.float16, torch.bfloat16)
    leaves = [leaf.float() if isinstance(leaf, torch.Tensor) and leaf.dtype in half else leaf for leaf in leaves]
    return torch.utils._pytree.tree_unflatten(leaves, spec)


def exported_folder(model: str | Path) -> Path | None:
    """
    The folder of an export, which `pvt-hf export` has written or the Hub holds: then its files are downloaded into the
    Hub's cache. None for other models. Raises an OSError for a path without a model, see [`check_model_path`].
    """
    if is_exported(model):
        return Path(model)
    check_model_path(model)
    name = str(model)
    if Path(folder_or_id(name)).exists() or official_variant(name):
        return None
    manifest = cached_file(
        name,
        EXPORT_MANIFEST,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if manifest is None:
        return None
    _, files, _ = read_manifest(Path(manifest).parent)
    programs = [f"{Path(file).stem}.*" for file in files]
    return Path(snapshot_download(name, allow_patterns=[*programs, "*.json", "*.txt", "README.md"]))


def open_exported(
    folder: str | Path, *, device: str | torch.device = "cpu", trust_remote_code: bool | None = None
) -> ExportedForInference:
    """
    Opens an exported folder to run it.

    Args:
        folder: written by `pvt-hf export`.
        device: where it runs. An ONNX Runtime with CUDA and the torch format know "cuda".
        trust_remote_code: whether code in the folder may run: an AOTInductor package is native code, and PyTorch opens
            programs of torch.export with pickle. None asks on the terminal, and refuses where there is none.

    Raises:
        ImportError: the runtime is not installed.
        OSError: a file is missing.
        UntrustedProgram: it has code that may not run.
        ValueError: the folder cannot be read.
    """
    folder = Path(folder)
    kind, dtypes, digests, report = read_export(folder)
    if reason := kind.missing():
        raise ImportError(f"{folder} cannot run: {reason}")
    check_trust(kind, folder, trust_remote_code)

    from transformers.exporters import ExportedModel

    from . import torch_programs  # noqa: F401  registers its formats

    if kind.name == "openvino":
        from . import openvino_programs  # noqa: F401  registers its runner

    config = read_config(folder)
    check_labels(folder, config, report.get("classes"))
    import_outputs(config)
    options = runtime_options(kind.name, dtypes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*children_specs.*", category=FutureWarning)  # in Transformers
        exported = ExportedModel.from_pretrained(folder, device=device, **options)
    exported.config = config
    # Pipelines print an error for class names that are not in their tables.
    class_name = (config.architectures or [ExportedForInference.__name__])[0]
    named: type[ExportedForInference] = type(class_name, (ExportedForInference,), {})
    digest = hashlib.sha256("".join(f"{name} {one}\n" for name, one in digests.items()).encode()).hexdigest()
    return named(exported, report.get("parameters", 0), digest, report.get("smallest_side", 1)).eval()


def runtime_options(name: str, dtypes: set[str]) -> dict[str, Any]:
    """
    What a runtime is opened with: as many threads as PyTorch, which respects OMP_NUM_THREADS and the processors that
    this process may use.

    Args:
        name: of the format.
        dtypes: of the program's weights.
    """
    threads = torch.get_num_threads()
    if name == "openvino":
        # By itself, OpenVINO computes in bf16 on processors that have it, whatever the model was.
        hint = next((OPENVINO_PRECISIONS[dtype] for dtype in dtypes if dtype in OPENVINO_PRECISIONS), "f32")
        return {"config": {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}}
    if name == "onnx":
        from onnxruntime import SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = threads
        # Its threads would otherwise go on spinning after a call, while PyTorch prepares and post-processes images.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return {"session_options": options}
    return {}


def read_config(folder: Path) -> Any:
    """The configuration of the model that was exported."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def import_outputs(config: PreTrainedConfig) -> None:
    """Imports the model's file, which defines the class of its output: the program returns that class."""
    for family in FAMILIES.values():
        if family.model_type == config.model_type:
            load(family.models[0].path)
