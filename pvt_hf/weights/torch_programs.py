"""
Programs of `torch.export` and compiled ones (AOTInductor), as formats of `transformers.exporters`: that library has the
first, and refuses sizes below those that PyTorch's guards allow; it lacks the second. Importing this file registers
both.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._sympy.value_ranges import ValueRanges
from transformers.exporters import DynamoConfig, DynamoExporter, ModelRunner
from transformers.exporters.auto import EXPORT_BACKENDS, ExportBackend
from transformers.exporters.metadata import load_treespec
from transformers.exporters.runners.runner_dynamo import DynamoModelRunner


class UnguardedRunner(DynamoModelRunner):
    """
    Runs a program without PyTorch's lower bounds on sizes. They come from reasoning about strides: a grid with a single
    row has other strides than those of the example, with the same values. An export is compared with its model at such
    sizes.
    """

    @classmethod
    def from_program(cls, program: Any, metadata: Any, device: Any = None) -> UnguardedRunner:
        for symbol, bounds in program.range_constraints.items():
            program.range_constraints[symbol] = ValueRanges(1, bounds.upper)
        module = program.module(check_guards=False)
        return cls(module if device is None else module.to(device), metadata)


@dataclass
class AotInductorConfig(DynamoConfig):
    """The configuration of [`AotInductorExporter`], which is that of `torch.export`."""

    export_format: Any = "aotinductor"


class AotInductorExporter(DynamoExporter):
    """Compiles a program into a package with native code for this processor, with the weights frozen in it."""

    export_format = "aotinductor"  # type: ignore[assignment]  # Transformers takes names of others, too
    config_class = AotInductorConfig
    program_suffix = ".aoti.pt2"

    def export_program(self, model: Any, sample_inputs: Any, config: Any) -> tuple[Any, Any]:
        program, metadata = super().export_program(model, sample_inputs, config)
        folder = tempfile.TemporaryDirectory()
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=f"{folder.name}/model.pt2", inductor_configs={"freezing": True}
        )
        return CompiledPackage(Path(path), folder), metadata

    @classmethod
    def save_program(cls, program: Any, path: Any) -> None:
        shutil.copyfile(program.path, path)

    @classmethod
    def load_program(cls, path: Any) -> Any:
        return CompiledPackage(Path(path))


@dataclass
class CompiledPackage:
    """
    A compiled package on disk.

    Attributes:
        path: of the file.
        folder: a temporary folder that holds it, removed with this object; None for a file that stays.
    """

    path: Path
    folder: Any = None


class AotInductorRunner(ModelRunner):
    """Runs a compiled package, on the device that it was compiled for."""

    def __init__(self, package: CompiledPackage, metadata: Any):
        super().__init__(metadata)
        self.compiled = torch._inductor.aoti_load_package(str(package.path))
        self.order = load_treespec(metadata.in_spec).child(1).context

    @property
    def device(self) -> torch.device:
        return torch.device(self.metadata.export_device or "cpu")

    @classmethod
    def from_program(cls, program: Any, metadata: Any, device: Any = None) -> AotInductorRunner:
        own = torch.device(metadata.export_device or "cpu")
        if device is not None and torch.device(device).type != own.type:
            raise ValueError(f"This package was compiled for {own.type} and cannot run on {device}: use {own.type}.")
        return cls(program, metadata)

    def __call__(self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any) -> Any:
        return self.compiled(**{name: kwargs[name] for name in self.order})


EXPORT_BACKENDS["dynamo"].runner = UnguardedRunner
EXPORT_BACKENDS["aotinductor"] = ExportBackend(AotInductorConfig, AotInductorExporter, AotInductorRunner)
