"""Where and how the arithmetic runs: device, threads, precision, the CPU's matrix products, compilation."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

from kdx import __version__
from kdx.config.schema import DeviceSettings
from kdx.device.cpu import keep_freed_memory, set_gemm
from kdx.device.machine import check_threads, cpu_model, kdx_source, waiting
from kdx.errors import UserError

log = logging.getLogger(__name__)


Network = TypeVar("Network", bound=nn.Module)

# Seconds that one compiled graph saves, measured on 2 cores with 784-300-100-10; compiling takes 15 to 25 s there.
SAVED_PER_STEP = 3e-4
SAVED_PER_NOISY_WEIGHT = 8e-9
COMPILE_SECONDS = 25.0
NARROW = 16


@dataclass(frozen=True)
class Backend:
    """The device, and how training steps are executed on it."""

    device: torch.device
    precision: Literal["fp32", "tf32", "bf16"]
    compile: bool | Literal["auto"]
    graph: bool | Literal["auto"]
    gemm: str
    latency_seconds: float

    @property
    def autocast(self) -> str | None:
        """The device type whose matrix products run in bfloat16, or None."""
        return self.device.type if self.precision == "bf16" else None

    @property
    def captures(self) -> bool:
        """Whether training steps are captured as CUDA graphs."""
        return self.device.type == "cuda" and self.graph is not False

    def to_device(self, network: Network) -> Network:
        """The network on the device, in the memory format in which its convolutions are fastest.

        That is channels_last on a CPU and on a GPU with tensor cores; values, and their order in files, do not change.
        """
        network = network.to(self.device)
        fits = self.device.type == "cuda" or (self.device.type == "cpu" and not has_narrow_projections(network))
        return network.to(memory_format=torch.channels_last) if fits and has_convolutions(network) else network

    def record(self) -> dict[str, str | int]:
        """The device and the software versions that steps are executed with, for metrics.json."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "device": name,
            "threads": torch.get_num_threads(),
            "precision": self.precision,
            "gemm": self.gemm,
            "processor": cpu_model(),
            "torch_version": torch.__version__,
            "kdx_version": __version__,
            "kdx_source": kdx_source(),
        }

    def compiles(self, student: nn.Module, steps: int) -> bool:
        """Whether a training of so many steps is compiled.

        `auto` decides by the amount of work, never by measured time, so that a run is always executed in the same way.
        Raises UserError if compilation is asked for and there is no C++ compiler.
        """
        if self.compile is False or (self.compile == "auto" and self.captures):
            # What fusing kernels saves within a graph is measured by `scripts/benchmark gpu`, not yet known.
            return False
        compiler = self.device.type != "cpu" or has_compiler()
        if self.compile is True:
            if not compiler:
                raise UserError("device.compile: 'true' needs a C++ compiler (g++ or clang++); allowed: auto, false")
            return True
        if self.device.type == "cpu" and has_convolutions(student):
            # A step of LeNet takes the same time compiled, one of SN 100 a quarter more (one core, channels_last).
            log.info("not compiled: with convolutions a step would not be faster")
            return False
        noisy = sum(value.numel() for name, value in student.named_parameters() if name.endswith("log_sigma2"))
        saved = steps * (SAVED_PER_STEP + SAVED_PER_NOISY_WEIGHT * noisy)
        if saved < COMPILE_SECONDS:
            log.info("not compiled: %d steps would save about %.0f s, less than compiling takes", steps, saved)
            return False
        if not compiler:
            log.info("not compiled: there is no C++ compiler (g++ or clang++)")
        return compiler


def has_convolutions(network: nn.Module) -> bool:
    """Whether any parameter is a filter (4-dimensional)."""
    return any(parameter.dim() > 2 for parameter in network.parameters())


def has_narrow_projections(network: nn.Module) -> bool:
    """Whether there are 1x1 filters with so few inputs that oneDNN may write beyond its memory in channels_last.

    The gradient of a strided one is then wrong, or the process is killed: below 8 inputs with AVX2, as seen with torch
    2.15, and by the same line of code below 16 with AVX-512 (oneDNN issue 6035).
    """
    filters = (parameter.shape[1:] for parameter in network.parameters() if parameter.dim() == 4)
    return any(inputs < NARROW and size == [1, 1] for inputs, *size in filters)


def has_compiler() -> bool:
    """Whether torch's CPU compiler finds a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def prepare_device(settings: DeviceSettings) -> Backend:
    """Set the process's threads, denormals, allocator and matrix products as `settings` says, and return the backend.

    Raises UserError as `choose_device` does, for more threads than cores, and for matrix products that would not have
    the precision that is asked for.
    """
    check_threads(settings.threads)
    device = choose_device(settings)
    # Before the first parallel operation: it holds for this thread and those that are started later.
    torch.set_flush_denormal(True)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if device.type == "cuda":
        gemm = _set_cuda(tf32=settings.precision == "tf32")
    else:
        keep_freed_memory()
        gemm = set_gemm(settings.gemm)
    log.info("device %s, precision %s, matrix products %s", device, settings.precision, gemm)
    if device.type == "cpu":
        log.info("%d threads, which wait as %s", torch.get_num_threads(), waiting())
    return Backend(device, settings.precision, settings.compile, settings.graph, gemm, settings.latency_seconds)


def _set_cuda(*, tf32: bool) -> str:
    """Select the precision of float32 products and convolutions on GPUs; return the library that multiplies."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    # By default torch lets convolutions, unlike matrix products, round to TF32.
    torch.backends.cudnn.allow_tf32 = tf32
    # A network's batches have one shape, so trying every algorithm once is repaid.
    torch.backends.cudnn.benchmark = True
    return "cublas"


@contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products and convolutions in full float32 on every device, whatever the process's settings."""
    precision, rounds = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = rounds


def choose_device(settings: DeviceSettings) -> torch.device:
    """The device that `settings` selects on this machine; raises UserError if it is missing or unsuited."""
    device = _of_kind(settings.kind)
    if device.type != "cuda" and settings.graph is True:
        raise UserError(f"device.graph: true needs an NVIDIA GPU, here is {device.type} only; allowed: auto, false")
    if device.type != "cuda" and settings.precision == "tf32":
        raise UserError(
            f"device.precision: 'tf32' needs an NVIDIA GPU, here is {device.type} only; allowed: fp32, bf16"
        )
    return device


def _of_kind(kind: str) -> torch.device:
    available = ["cpu"]
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if torch.backends.mps.is_available():
        # Last, because nobody has tried kdx on one yet: it is taken only where it is named.
        available.append("mps")
    if kind == "auto":
        return torch.device(available[0])
    if kind not in available:
        raise UserError(f"device: '{kind}' is not available on this machine; allowed: {', '.join(available)}, auto")
    return torch.device(kind)
