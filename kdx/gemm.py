"""Which of the CPU's two routes for float32 matrix products is faster: measured once per machine, then remembered."""

import json
import logging
import platform
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from kdx.files import write_json
from kdx.folders import user_cache

log = logging.getLogger(__name__)

# torch's routes, by the name of the precision setting that selects them on a CPU.
PRECISION = {"default": "highest", "onednn": "medium"}
# A float32 product of MNIST size has a relative error of 4e-7, one in bfloat16 of 2e-3.
FLOAT32_ERROR = 1e-5
# The routes differ by 0-120 %; below this the measurement is noise.
LEAST_GAIN = 1.05
ROUNDS, PRODUCTS = 15, 20


def set_gemm(route: str) -> str:
    """Select a route for the process: `default`, `onednn` or `auto`, the faster one; give the route that was taken.

    `auto` is remembered in the user's cache for this processor, number of threads and version of torch, so that the
    same run always executes the same way.
    """
    chosen = _remembered() if route == "auto" else route
    torch.set_float32_matmul_precision(PRECISION[chosen])
    return chosen


def faster_gemm() -> str:
    """Measure both routes, alternating; oneDNN counts only where it computes in float32 (AMX may use bfloat16)."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((128, 784), (784, 300)))
    exact = left.double() @ right.double()
    before = torch.get_float32_matmul_precision()
    seconds: dict[str, list[float]] = {name: [] for name in PRECISION}
    accurate = True
    try:
        for _ in range(ROUNDS):
            for name, precision in PRECISION.items():
                torch.set_float32_matmul_precision(precision)
                product, time_taken = _timed_products(left, right)
                seconds[name].append(time_taken)
                accurate &= bool((product - exact).norm() < FLOAT32_ERROR * exact.norm())
    finally:
        torch.set_float32_matmul_precision(before)
    gain = median(seconds["default"]) / median(seconds["onednn"])
    log.info("float32 matrix products: oneDNN %.2f times as fast, %s", gain, "exact" if accurate else "not float32")
    return "onednn" if accurate and gain > LEAST_GAIN else "default"


def _remembered() -> str:
    memory = user_cache() / "gemm.json"
    machine = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = _read(memory)
    if known.get(machine) in PRECISION:
        return known[machine]
    choice = faster_gemm()
    try:
        write_json(memory, known | {machine: choice})
    except OSError as error:
        log.info("%s: the faster matrix product is not remembered (%s)", memory, error)
    return choice


def processor() -> str:
    """The processor's model and the widest instructions that torch uses on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    # Virtual machines often hide the marketing name, so family and model go with it.
    words = [facts.get("model name", platform.processor()).strip()]
    words += [f"{key} {facts[key].strip()}" for key in ("cpu family", "model") if key in facts]
    return ", ".join([*words, torch.backends.cpu.get_cpu_capability()])


def _read(memory: Path) -> dict[str, str]:
    try:
        content = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _timed_products(left: Tensor, right: Tensor) -> tuple[Tensor, float]:
    product = left @ right
    started = time.perf_counter()
    for _ in range(PRODUCTS):
        product = left @ right
    return product, time.perf_counter() - started
