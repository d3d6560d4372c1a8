"""Allows one training per output folder, with a lock that the system releases when the process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object


LOCK_FILE = ".training.lock"
# What file systems without locks answer
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Held by this process, as (device, inode): the system lets a process take its own lock twice.
_held: set[tuple[int, int]] = set()


@contextlib.contextmanager
def lock_output_dir(output_dir: str | Path, state: Any) -> Iterator[None]:
    """
    Creates the folder and locks it for a run, on its main process. The operating system releases the lock when the
    process ends in whatever way, so the file that remains does not matter. Where the file system has no locks, a
    warning is printed.

    Args:
        state: an Accelerator or PartialState. Every process has to call this.

    Raises:
        BlockingIOError: on every process, if another run holds the lock.
        OSError: the folder or the file cannot be created.
    """
    descriptor, problem, error = None, None, None
    if state.is_main_process:
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            file = Path(output_dir, LOCK_FILE)
            if file.exists() and _identity(file) in _held:  # opening and closing it again would release the lock
                raise _in_use(output_dir, "this process")
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            problem = _lock(descriptor, output_dir)
        except OSError as caught:
            error = caught
    try:
        # All processes go on, or none.
        error = gather_object([error])[0]
        if error is not None:
            raise error
        if problem is not None:
            state.print(f"warning: {problem}")
        yield
    finally:
        if descriptor is not None:
            _held.discard(_identity(descriptor))
            os.close(descriptor)  # releases the lock


def _lock(descriptor: int, output_dir: str | Path) -> str | None:
    """Takes the lock, and records its holder in the file. Returns a warning if the file system has no locks."""
    try:
        # A record lock (POSIX): unlike flock's, it is not handed on to loader processes, which may outlive a crash.
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return _unlocked(output_dir, f"{sys.platform} has no fcntl")
    except OSError as error:
        if error.errno in NO_LOCKS:
            return _unlocked(output_dir, os.strerror(error.errno))
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _in_use(output_dir, os.pread(descriptor, 200, 0).decode(errors="replace") or "unknown") from None
        raise
    _held.add(_identity(descriptor))
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}".encode())
    return None


def _identity(file: int | Path) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _in_use(output_dir: str | Path, holder: str) -> BlockingIOError:
    return BlockingIOError(
        f"Another training writes into {output_dir} ({holder}). Two in one folder would destroy each other's "
        "checkpoints: choose another --output_dir, or stop that one first."
    )


def _unlocked(output_dir: str | Path, reason: str) -> str:
    return (
        f"{output_dir} cannot be locked ({reason}). A second training into it would not be refused, and both would "
        "destroy each other's checkpoints: do not start one."
    )
