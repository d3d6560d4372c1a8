"""What `pvt-hf info` says of an exported program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..weights.export_files import check_labels, read_export
from ..weights.export_formats import ExportFormat


@dataclass(frozen=True)
class Export:
    """
    An export whose files are as they were exported.

    Attributes:
        folder: where it is.
        kind: its format.
        files: of the program.
        precision: "fp32", "int8" ...
        report: the content of `export_report.json`; empty without one.
    """

    folder: Path
    kind: ExportFormat
    files: tuple[Path, ...]
    precision: str
    report: dict[str, Any]

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of the only images that it takes; None if it takes others."""
        fixed = self.report.get("fixed_size")
        return (fixed[0], fixed[1]) if fixed else None

    def check_size(self, height: int, width: int) -> None:
        """Raises a ValueError if it takes no images of this size."""
        smallest = self.report.get("smallest_side", 1)
        if self.fixed_size not in (None, (height, width)):
            takes = "{}x{} pixels only: leave out --size".format(*self.fixed_size or ())
        elif self.fixed_size is None and min(height, width) < smallest:
            takes = f"at least {smallest}x{smallest} pixels: give a larger --size"
        else:
            return
        raise ValueError(f"{height}x{width} pixels: {self.folder} takes images of {takes}.")

    def facts(self) -> list[str]:
        """Lines about the program."""
        size = sum(file.stat().st_size for file in self.files)
        lines = [f"complete: {', '.join(file.name for file in self.files)}; {size / 2**20:,.1f} MiB on disk",
                 f"{self.kind.title}, {self.precision}"]  # fmt: skip
        if not self.report:
            return [*lines, "no export_report.json, which says what it was exported from and for which sizes"]
        lines[1] += f", exported from {self.report['model']} with {self.report['parameters']:,} parameters"
        smallest = self.report["smallest_side"]
        lines.append(
            "takes images of {}x{} pixels (height x width), one after the other".format(*self.fixed_size)
            if self.fixed_size
            else f"takes any number of images of any size from {smallest}x{smallest} pixels"
        )
        return lines

    def uses(self, tasks: list[str]) -> list[str]:
        """
        Lines about what serves it.

        Args:
            tasks: of `pvt-hf predict`; none for feature extractors.
        """
        lines = [f"pvt-hf predict, evaluate, app; pvt_hf.open_pipeline: {', '.join(tasks) or 'no task'}",
                 f"{self.kind.runtime}, by itself", "not from_pretrained or pipeline of Transformers"]  # fmt: skip
        if reason := self.kind.missing():
            lines.append(f"not on this machine yet: {reason}")
        if self.kind.code:
            lines.append(f"{self.kind.code}: opens only with --trust_remote_code or trust_remote_code=True")
        return lines


def open_export(folder: Path, config: Any) -> Export:
    """
    Checks the folder as it is checked before its program runs.

    Args:
        config: the configuration in it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder cannot be read, or a file is not as it was exported.
    """
    kind, dtypes, digests, report = read_export(folder)
    check_labels(folder, config, report.get("classes"))
    precision = report.get("precision") or ", ".join(sorted(dtypes))
    return Export(folder, kind, tuple(folder / name for name in digests), precision, report)
