"""Calls a function in a process of its own, so that its peak memory is that of the call alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any


class ProcessEndedError(RuntimeError):
    """
    The process ended without a result, for example for lack of memory.

    Attributes:
        exit_code: of the process; -9 if it was killed.
    """

    def __init__(self, exit_code: int | None):
        super().__init__(f"the process ended with exit code {exit_code}")
        self.exit_code = exit_code


def call_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """
    The result of `function(*arguments)` from a new process, which imports the module of `function`.

    Raises:
        ProcessEndedError: there is no result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise ProcessEndedError(process.exitcode) from None
    finally:
        process.kill()
        process.join()


def _send_result(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the parent process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sender.send(function(*arguments))


def _end_with_parent() -> None:
    """Ends this process when its parent is killed, which could not end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
