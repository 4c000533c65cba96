"""Where and how the arithmetic runs: device, threads, precision, the CPU's matrix products, compilation."""

import logging
import os
import shutil
import time
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

from kdx.config import DeviceSettings
from kdx.errors import UserError, unknown

log = logging.getLogger(__name__)

# torch's two CPU routes for float32 matrix products, by the name of its precision setting.
GEMM_PRECISION = {"default": "highest", "onednn": "medium"}
# Relative error of a float32 product of MNIST size is 4e-7; bfloat16 arithmetic shows 2e-3.
FLOAT32_ERROR = 1e-5
GEMM_GAIN = 1.2
# Saved by one compiled graph, measured on 2 cores with 784-300-100-10 (docs in README, "Speed").
SAVED_PER_STEP = 3e-4
SAVED_PER_NOISY_WEIGHT = 8e-9
COMPILE_SECONDS = 25.0


@dataclass(frozen=True)
class Engine:
    """The device, and how a training step is executed on it."""

    device: torch.device
    precision: Literal["fp32", "tf32", "bf16"]
    compile: bool | Literal["auto"]
    gemm: str

    @property
    def autocast(self) -> str | None:
        """The device type whose matrix products run in bfloat16, or None."""
        return self.device.type if self.precision == "bf16" else None

    def record(self) -> dict[str, str | int]:
        """What the run was executed on, for its metrics."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "device": name,
            "threads": torch.get_num_threads(),
            "precision": self.precision,
            "gemm": self.gemm,
            "torch_version": torch.__version__,
        }

    def compiles(self, student: nn.Module, steps: int) -> bool:
        """Whether a training of so many steps is compiled.

        `auto` decides by the work alone, never by the clock, so that the same run always executes the same way.
        Raises UserError where compilation is asked for and no C++ compiler is there.
        """
        if self.compile is False:
            return False
        compiler = self.device.type != "cpu" or has_compiler()
        if self.compile is True:
            if not compiler:
                raise UserError("device.compile: 'true' needs a C++ compiler (g++ or clang++); allowed: auto, false")
            return True
        noisy = sum(value.numel() for name, value in student.named_parameters() if name.endswith("log_sigma2"))
        saved = steps * (SAVED_PER_STEP + SAVED_PER_NOISY_WEIGHT * noisy)
        if saved < COMPILE_SECONDS:
            log.info("not compiled: %d steps would save about %.0f s, less than compiling takes", steps, saved)
            return False
        if not compiler:
            log.info("not compiled: there is no C++ compiler (g++ or clang++)")
        return compiler


def has_compiler() -> bool:
    """Whether torch's CPU compiler finds a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def prepare_device(settings: DeviceSettings) -> Engine:
    """Set the process's threads, denormals and matrix products as `settings` says, and name the device.

    Raises UserError for a device that is not there.
    """
    # Before the first parallel operation: it holds for this thread and those that are started later.
    torch.set_flush_denormal(True)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = _chosen(settings.kind)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if settings.precision == "tf32" else "highest")
        gemm = "cublas"
    else:
        gemm = settings.gemm if settings.gemm != "auto" else faster_gemm()
        torch.set_float32_matmul_precision(GEMM_PRECISION[gemm])
    log.info("device %s, precision %s, matrix products %s", device, settings.precision, gemm)
    return Engine(device, settings.precision, settings.compile, gemm)


def _chosen(kind: str) -> torch.device:
    available = ["cpu"]
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if kind == "auto":
        return torch.device(available[0])
    if kind not in available:
        raise unknown("device", kind, [*available, "auto"])
    return torch.device(kind)


def faster_gemm() -> str:
    """Which CPU route for float32 matrix products is faster here, by measurement: `default` or `onednn`.

    oneDNN counts only where its result is float32's: processors with AMX may compute in bfloat16 on that route.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((128, 784), (784, 300)))
    exact = left.double() @ right.double()
    before = torch.get_float32_matmul_precision()
    times: dict[str, list[float]] = {name: [] for name in GEMM_PRECISION}
    accurate = True
    try:
        for _ in range(5):
            for name, precision in GEMM_PRECISION.items():
                torch.set_float32_matmul_precision(precision)
                product, seconds = _timed_products(left, right)
                times[name].append(seconds)
                accurate &= bool((product - exact).norm() < FLOAT32_ERROR * exact.norm())
    finally:
        torch.set_float32_matmul_precision(before)
    gain = median(times["default"]) / median(times["onednn"])
    log.info("float32 matrix products: oneDNN %.2f times as fast, %s", gain, "exact" if accurate else "not float32")
    return "onednn" if accurate and gain > GEMM_GAIN else "default"


def _timed_products(left: Tensor, right: Tensor) -> tuple[Tensor, float]:
    product = left @ right
    started = time.perf_counter()
    for _ in range(20):
        product = left @ right
    return product, time.perf_counter() - started
