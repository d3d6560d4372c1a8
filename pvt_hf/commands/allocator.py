"""Asks the C library to keep freed memory, which can speed up computing on a CPU: see `pvt-hf benchmark allocator`."""

import ctypes
import os
import platform
import sys

import torch


# Name of the variable: its number in glibc's malloc.h, and the value. No block gets a mapping of its own, the heap
# does not shrink, and it grows by at least 64 MiB.
SETTINGS = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 64 * 2**20),
}
# Variables by which users choose for themselves
VARIABLES = (*SETTINGS, "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(on_cpu: bool) -> bool:
    """
    Lets this process keep the memory of tensors that are freed. By default, glibc returns it to the operating system,
    which has to zero it again, page by page, when the next step needs it. Commands call this; the library never does.

    Args:
        on_cpu: whether the user has chosen the CPU. Otherwise, nothing is done where PyTorch finds an accelerator.

    Returns:
        Whether it was done: not without glibc, and not if the user has set one of `VARIABLES`.
    """
    if not on_cpu and torch.accelerator.is_available():
        return False
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) for parameter, value in SETTINGS.values()])
