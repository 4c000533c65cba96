"""The CPU: which library multiplies float32 matrices, and the memory that a training step frees and reuses."""

import ctypes
import os
import sys
from collections.abc import Callable

import torch

from kdx.errors import UserError

# torch's routes, by the name of the setting that selects them on a CPU. "medium" is the only way to oneDNN's products,
# and lets them round to bfloat16; without AVX-512 torch passes it over. It is a setting of products alone: oneDNN's
# convolutions go by torch.backends.mkldnn.conv.fp32_precision, which stays float32, but a convolution that torch makes
# a product, like the linear layers that its compiler packs, goes by that of products.
PRECISION = {"default": "highest", "onednn": "medium"}
# The values of ONEDNN_MAX_CPU_ISA that hide AMX from oneDNN; a word that it does not know hides nothing.
WITHOUT_AMX = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
WITHOUT_AMX |= {"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"}
# Environment variables that make oneDNN round float32 convolutions and products, whatever torch's settings.
ROUNDING_MODES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


def set_gemm(route: str) -> str:
    """Select the library of CPU matrix products, and return the selected one.

    `auto` is `onednn` wherever that multiplies in float32, else `default`. Raises UserError if oneDNN is asked for and
    would round to bfloat16, or if an environment variable tells it to round.
    """
    for name in ROUNDING_MODES:
        if os.environ.get(name, "").upper() not in ("", "STRICT"):
            raise UserError(
                f"{name}: '{os.environ[name]}' would round float32 products and convolutions; allowed: STRICT, or not"
                " set; who wants bfloat16 asks for device.precision=bf16"
            )
    why = onednn_rounds()
    if route == "onednn" and why is not None:
        raise UserError(
            f"device.gemm: 'onednn' would multiply float32 matrices in bfloat16 here, {why}; allowed: auto, default;"
            " who wants bfloat16 asks for device.precision=bf16"
        )
    chosen = ("onednn" if why is None else "default") if route == "auto" else route
    torch.set_float32_matmul_precision(PRECISION[chosen])
    return chosen


def onednn_rounds() -> str | None:
    """The reason why oneDNN would multiply float32 matrices in bfloat16 on this processor, or None if it would not.

    On x86-64 it rounds only with AMX, although AVX-512 has bfloat16 instructions too. On other processors, such as ARM
    with bfloat16 instructions, it may round.
    """
    processor = torch.cpu.get_capabilities()
    if processor["architecture"] != "x86_64":
        return f"on a processor ({processor['architecture']}) that is not x86-64"
    hidden = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_AMX
    return "on a processor with AMX" if processor["amx_tile"] and not hidden else None


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
