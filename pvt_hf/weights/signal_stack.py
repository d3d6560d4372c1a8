"""Mends what OpenVINO does to signals: without it, Ctrl-C can end the process by a segmentation fault."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
