"""Asks the C library to keep freed memory, which speeds up computing on a CPU: see `pvt-hf benchmark allocator`."""

import ctypes
import os
import platform
import sys


# Name of the variable: its number in glibc's malloc.h, and the value. No block is mapped by itself, the heap does not
# shrink, and it grows by at least 64 MiB.
SETTINGS = {
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_TOP_PAD_": (-2, 64 * 2**20),
}
# Variables by which users choose for themselves
VARIABLES = (*SETTINGS, "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """
    Lets this process keep the memory of tensors that are freed. By default, glibc returns it to the operating system,
    which clears it page by page when the next step needs it again. Commands call this; the library never does.

    Returns:
        Whether it was done: not without glibc, and not if the user has set one of `VARIABLES`.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(parameter, value) for parameter, value in SETTINGS.values()])
