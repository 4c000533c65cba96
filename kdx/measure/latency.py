"""How long a network takes for one batch: dense and as CSR, on one CPU thread and on the device of the run."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdx.device import full_float32
from kdx.files import write_rows
from kdx.measure.csr import ScipyProduct, TorchProduct, csr_network

DENSE, CSR_SCIPY, CSR_TORCH = "dense", "csr scipy", "csr torch"
BATCHES = (1, 1024)
THREADS = 1
MAX_REPETITIONS = 1000
MIN_REPETITIONS = 3
# A batch that would take longer than this is left out: a VGG19 must not hold up a finished run for minutes.
MAX_CALL_SECONDS = 5.0
PROBE_IMAGES = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch: the median and the 10th and 90th percentile over `repetitions`."""

    device: str
    threads: int
    runtime: str
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    repetitions: int


def latencies(model: nn.Module, images: Tensor, device: torch.device, seconds: float) -> list[Latency]:
    """Time `model` on batches of `images` (N, C, H, W; repeated when fewer than a batch), one CPU thread.

    Dense and both CSR runtimes on the CPU, and dense on `device` when that is another one, in float32; `seconds`
    bounds the whole for small networks. All runtimes get the same image-major batch, so CSR's time includes the
    transposition. A batch that would take longer than `MAX_CALL_SECONDS` is left out.
    """
    cpu = torch.device("cpu")
    # In the usual layout of memory, since a network that a GPU has trained has the layout that is fast there.
    plain = deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)
    networks = [
        (cpu, DENSE, plain),
        (cpu, CSR_SCIPY, csr_network(model, ScipyProduct)),
        (cpu, CSR_TORCH, csr_network(model, TorchProduct)),
    ]
    if device.type != "cpu":
        networks.append((device, DENSE, deepcopy(model).to(device).float().eval()))
    budget = seconds / (len(networks) * len(BATCHES))
    rows = []
    with cpu_threads(THREADS), torch.inference_mode():
        for place, runtime, network in networks:
            for batch in BATCHES:
                inputs = images[torch.arange(batch, device=images.device) % len(images)].to(place, torch.float32)
                row = _time(network, inputs, place, runtime, budget)
                if row is not None:
                    rows.append(row)
    return rows


def fastest_csr(rows: Sequence[Latency]) -> str | None:
    """The CSR runtime with the lowest median at batch 1, or None when none was timed."""
    candidates = [row for row in rows if row.runtime != DENSE and row.batch == 1]
    return min(candidates, key=lambda row: row.median_ms).runtime if candidates else None


def write_latency(path: Path, rows: Sequence[Latency]) -> None:
    """Write latency.csv atomically, one row per device, runtime and batch."""
    write_rows(path, Latency, rows)


def _time(network: nn.Module, inputs: Tensor, device: torch.device, runtime: str, budget: float) -> Latency | None:
    def call(batch: Tensor = inputs) -> float:
        start = time.perf_counter()
        network(batch)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    if not is_quick_enough(call, inputs):
        log.info("%s on %s: batch %d takes over %g s, not timed", runtime, device.type, len(inputs), MAX_CALL_SECONDS)
        return None
    return summary(device.type, THREADS, runtime, len(inputs), repeat(call, budget))


def summary(device: str, threads: int, runtime: str, batch: int, seconds: Sequence[float]) -> Latency:
    """The row of a batch that took `seconds` each time."""
    milliseconds = 1000 * np.array(seconds)
    p10, median, p90 = (float(value) for value in np.percentile(milliseconds, (10, 50, 90)))
    return Latency(device, threads, runtime, batch, median, p10, p90, len(milliseconds))


def is_quick_enough(call: Callable[..., float], inputs: Tensor | np.ndarray) -> bool:
    """Judge a large batch by a few of its images, twice, since the first call of a network is always slow."""
    if len(inputs) <= PROBE_IMAGES:
        return True
    probe = inputs[:PROBE_IMAGES]
    return min(call(probe), call(probe)) * len(inputs) / PROBE_IMAGES <= MAX_CALL_SECONDS


def repeat(call: Callable[[], float], budget: float) -> list[float]:
    """Times in seconds of repeated calls: at least `MIN_REPETITIONS`, then until `budget` seconds are spent."""
    start = time.perf_counter()
    while True:  # Warm up: caches, lazy initialisation, the processor's clock.
        call()
        if time.perf_counter() - start >= 0.2 * budget:
            break
    seconds: list[float] = []
    while len(seconds) < MIN_REPETITIONS or (time.perf_counter() - start < budget and len(seconds) < MAX_REPETITIONS):
        seconds.append(call())
    return seconds


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """So many torch threads and whole float32 products; a run may have chosen oneDNN, which is slow at batch 1."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with full_float32():
            yield
    finally:
        torch.set_num_threads(threads)
