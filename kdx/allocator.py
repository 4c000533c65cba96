"""Keeps the memory that a training step frees in the process, for the next step, until it is returned to the system."""

import ctypes
import os
import sys
from collections.abc import Callable

# glibc's mallopt(3): the size from which a block gets its own mapping, and how much may stay free at the heap's end.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
NEVER = -1
# More than any tensor of a training step takes on a CPU; a data set's images may take more, and are given back.
# The second value is the largest that glibc up to 2.34 allows.
LARGEST_KEPT = (512 * 2**20, 32 * 2**20)
OWN_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocations; return whether it now does.

    By default it returns large blocks to the system, and a step's next tensors cost a page fault for every 4 KiB: a
    fifth of the time of a step with convolutions. A user's own choice by glibc's environment variables is left as it
    is. False with another C library.
    """
    if any(name in os.environ for name in OWN_CHOICES):
        return False
    mallopt = _from_c_library("mallopt")
    if mallopt is None or not any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_KEPT):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def give_back_freed_memory() -> None:
    """Return the kept memory to the system, if the C library is glibc, so that it counts as free again."""
    trim = _from_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _from_c_library(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
