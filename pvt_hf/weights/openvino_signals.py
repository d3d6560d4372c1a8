"""OpenVINO and signals: without this, Ctrl-C can end the process by a segmentation fault, or leave files behind."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class SignalStack(ctypes.Structure):
    """Linux' `stack_t`: where a thread runs its signal handlers."""

    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """
    Restores the signal stack of this thread at the end. On Linux, each `openvino.Core` (2026.4) that opens a program
    sets one of its own, and the one before when it is released. If several are not released in reverse order, that is
    memory which is no longer there, and the next signal, such as Ctrl-C, is a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    before, sigaltstack = SignalStack(), ctypes.CDLL(None).sigaltstack
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)


@contextmanager
def signals_at_the_end() -> Iterator[None]:
    """
    SIGINT and SIGTERM take effect at the end. OpenVINO's converter calls Python from C++, where an exception of their
    handlers would abort the process.
    """
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread
        yield
        return
    arrived: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if number not in arrived:
            arrived.append(number)
            print("interrupted: ends as soon as OpenVINO returns", file=sys.stderr)

    handlers = {number: signal.signal(number, wait) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler or signal.SIG_DFL)  # None: it was not set by Python
        for number in arrived:
            signal.raise_signal(number)
