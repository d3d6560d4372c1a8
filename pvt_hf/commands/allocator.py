"""Asks the C library to keep freed memory, which speeds up computing on a CPU: see `pvt-hf benchmark allocator`."""

import ctypes
import os
import platform
import sys


# Numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
# Variables by which users choose for themselves
VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
)


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
    return all((mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 64 * 2**20)))
