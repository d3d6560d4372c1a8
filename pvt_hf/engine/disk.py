"""What to say when a file cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch


PROBE_BYTES = 1 << 20


def describe_write_error(folder: Path, error: BaseException, needed: int) -> str:
    """
    Says why writing to a folder failed: whether the disk is full, how much is needed and how much is free. Libraries
    report a full disk in ways that do not mention it, such as an internal assertion.

    Call this before partial files are deleted, because deleting them frees space.

    Args:
        error: raised by whatever wrote.
        needed: bytes that the complete save takes at least; 0: unknown.
    """
    number = error.errno if isinstance(error, OSError) and error.errno else _probe(folder)
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "a file would be larger than is allowed (ulimit -f)",
    }
    reason = reasons.get(number or 0)
    already = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    room = shutil.disk_usage(folder).free + already
    sizes = f"{room / 1e6:,.1f} MB are free" + (f", {needed / 1e6:,.1f} MB are needed" if needed else "")
    if reason is None and room < needed:
        reason = "the disk is full"
    if reason is None:
        return f"{type(error).__name__}: {error} ({sizes})"
    return f"{reason}: {sizes} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"


def _probe(folder: Path) -> int | None:
    """Writes a little more, and returns the error number; None if that works."""
    file = folder / ".probe"
    try:
        with open(file, "wb") as handle:
            handle.write(bytes(PROBE_BYTES))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        return error.errno
    finally:
        file.unlink(missing_ok=True)
    return None


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists; of a sharded tensor, this process's shard."""
    if isinstance(value, torch.Tensor):
        value = value.to_local() if hasattr(value, "to_local") else value
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0
