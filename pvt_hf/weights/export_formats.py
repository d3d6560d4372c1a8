"""The formats of exported models. Imports nothing heavy: arguments are checked with it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec


# The files of an export, of any format, as patterns
EXPORT_FILES = (
    "README.md", "config.json", "export.json", "export_report.json", "labels.txt", "model.*pt2", "model.onnx*",
    "model.pte", "openvino_model.*", "preprocessor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class ExportFormat:
    """
    Attributes:
        name: as `pvt-hf export --format` takes it.
        title: for people.
        transformers_name: in `export.json`, of `transformers.exporters` or registered beside them.
        runtime: the package that runs it, as it is installed.
        packages: that export it and run it, as they are imported.
        extra: of this package, that installs them; "" if the core does.
        precisions: besides fp32 and int8: "fp16", "bf16".
        quantizer: the package that quantises to int8; "" if there is none.
        dynamic: whether batch, height and width may stay open.
        code: what in an export may run code of someone else: "holds ..."; "" if nothing may.
        no_mask_rcnn: why Mask R-CNN cannot be exported, and what to do instead; "" if it can.
    """

    name: str
    title: str
    transformers_name: str
    runtime: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    precisions: tuple[str, ...] = ()
    quantizer: str = ""
    dynamic: bool = True
    code: str = ""
    no_mask_rcnn: str = ""

    def needed(self, quantize: bool = False) -> list[str]:
        """The packages that export it and run it, as they are imported; with those that quantise it."""
        return list(dict.fromkeys([*self.packages, *([self.quantizer] if quantize else [])]))

    def missing(self, quantize: bool = False) -> str:
        """
        Why it cannot be used here: the packages that are not installed, and the line that installs them; or "".

        Args:
            quantize: whether it is to be quantised.
        """
        packages = [package for package in self.needed(quantize) if find_spec(package) is None]
        if not packages:
            return ""
        are = "is" if len(packages) == 1 else "are"
        return (
            f"{self.title} needs {' and '.join(packages)}, which {are} not installed: pip install "
            f'"pvt-hf[{self.extra}]"'
        )


EXPORT_FORMATS = {
    one.name: one
    for one in (
        ExportFormat(
            "onnx", "ONNX", "onnx", "onnxruntime", ("onnx", "onnxruntime", "onnxscript"), "export",
            precisions=("fp16",), quantizer="onnxruntime",
        ),
        ExportFormat(
            "openvino", "OpenVINO", "openvino", "openvino", ("openvino",), "openvino", precisions=("fp16", "bf16"),
            quantizer="nncf",
            no_mask_rcnn="its converter for PyTorch has no operator for NMS. Export to onnx, and open that model.onnx "
            "with openvino.Core().read_model, which has it.",
        ),
        ExportFormat(
            "torch", "torch.export", "dynamo", "torch", precisions=("fp16", "bf16"),
            code="holds a program that is read with pickle, which can run any code",
        ),
        ExportFormat(
            "aotinductor", "torch.export, compiled by AOTInductor", "aotinductor", "torch", precisions=("bf16",),
            code="holds native code",
        ),
        ExportFormat(
            "executorch", "ExecuTorch", "executorch", "executorch", ("executorch",), "executorch", dynamic=False,
            no_mask_rcnn="it has no operators for RoIAlign and NMS. Export to onnx.",
        ),
    )
}  # fmt: skip


def format_called(transformers_name: str) -> ExportFormat | None:
    """The format with this name in `export.json`; None if there is none."""
    return next((one for one in EXPORT_FORMATS.values() if one.transformers_name == transformers_name), None)
