"""The memory that a training step frees: kept for the next one, until it is given back to the system."""

import ctypes
import os
import sys
from collections.abc import Callable

# glibc's mallopt(3): from which size on a block is mapped by itself, and how much may lie free at the heap's end.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
NEVER = -1
# More than any tensor of a step of these networks takes on a CPU; a data set's images may be more, and are given back.
# The second is what glibc up to 2.34 allows at most.
LARGEST_KEPT = (512 * 2**20, 32 * 2**20)
OWN_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the process's C library keep what is freed, for what is allocated next; whether it does so now.

    By itself it gives large blocks back, and a step's next tensors cost a page fault for every 4 KiB: a fifth of the
    time of a step with convolutions. Who has chosen by glibc's environment variables keeps that. False where the C
    library is another one.
    """
    if any(name in os.environ for name in OWN_CHOICES):
        return False
    mallopt = _from_c_library("mallopt")
    if mallopt is None or not any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_KEPT):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def give_back_freed_memory() -> None:
    """Give back what is kept, where glibc does: to others, and to the count of what is free."""
    trim = _from_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _from_c_library(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
