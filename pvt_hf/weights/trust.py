"""Whether the code in an exported program may run."""

from __future__ import annotations

import sys
from pathlib import Path

from .export_formats import ExportFormat


class UntrustedProgram(ValueError):
    """An export has code, and nobody has allowed it to run. The message says how to."""


def check_trust(kind: ExportFormat, folder: Path, trust_remote_code: bool | None) -> None:
    """
    Args:
        folder: of the export.
        trust_remote_code: whether its code may run; None asks on the terminal, and means no where there is none.

    Raises:
        UntrustedProgram: it may not.
    """
    if not kind.code:
        return
    if trust_remote_code is None and sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{folder} {kind.code}. Run it? [y/N] ", end="", file=sys.stderr, flush=True)  # stdout may be results
        trust_remote_code = sys.stdin.readline().strip().lower() in ("y", "yes")
    if not trust_remote_code:
        raise UntrustedProgram(
            f"{folder} {kind.code}. If you trust where it comes from, allow it: --trust_remote_code on the command "
            "line, trust_remote_code=True in Python."
        )
