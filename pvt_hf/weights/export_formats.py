"""The formats of exported models. Imports nothing heavy: arguments are checked with it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class ExportFormat:
    """
    Attributes:
        name: as `pvt-hf export --format` takes it.
        title: for people.
        transformers_name: in `export.json`, of `transformers.exporters` or registered beside them.
        packages: that export it and run it, as they are imported.
        extra: of this package, that installs them; "" if the core does.
        precisions: besides fp32 and int8: "fp16", "bf16".
        quantized: whether int8 is possible.
        dynamic: whether batch, height and width may stay open.
        native_code: whether its files hold code for the processor, which opening it may run.
    """

    name: str
    title: str
    transformers_name: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    precisions: tuple[str, ...] = ()
    quantized: bool = False
    dynamic: bool = True
    native_code: bool = False

    @property
    def missing(self) -> str:
        """Why it cannot be used here: the packages that are not installed, and the line that installs them; or ""."""
        packages = [package for package in self.packages if find_spec(package) is None]
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
        ExportFormat("onnx", "ONNX", "onnx", ("onnx", "onnxruntime", "onnxscript"), "export"),
    )
}  # fmt: skip


def format_called(transformers_name: str) -> ExportFormat | None:
    """The format with this name in `export.json`; None if there is none."""
    return next((one for one in EXPORT_FORMATS.values() if one.transformers_name == transformers_name), None)
