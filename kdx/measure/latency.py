"""The latency of a network for one batch: dense and as CSR, on one CPU thread and on the device of the run."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdx.deploy.rounds import Rounds, seconds_of, speedup, time_in_rounds
from kdx.device.backend import full_float32
from kdx.measure.csr import ScipyProduct, TorchProduct, csr_network
from kdx.storage.files import write_rows

log = logging.getLogger(__name__)


DENSE, CSR_SCIPY, CSR_TORCH = "dense", "csr scipy", "csr torch"
BATCHES = (1, 1024)
THREADS = 1
# A batch that would take longer than this is left out: a VGG19 must not hold up a finished run for minutes.
MAX_CALL_SECONDS = 5.0
PROBE_IMAGES = 8


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch: the median and the 10th and 90th percentile over `repetitions`.

    `against_dense` is the speedup over the dense network on the same device, the median over rounds, with its 95 %
    interval: None if the interval is too wide to tell. All three are None without a comparison.
    """

    device: str
    threads: int
    runtime: str
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    repetitions: int
    against_dense: float | None = None
    against_dense_low: float | None = None
    against_dense_high: float | None = None


def latencies(model: nn.Module, images: Tensor, device: torch.device, seconds: float) -> list[Latency]:
    """Time `model` on batches of `images` (N, C, H, W; repeated if fewer than a batch), on one CPU thread.

    Timed in turn, in float32: dense and both CSR runtimes on the CPU, and dense on `device` if that is another one.
    `seconds` bounds the whole for small networks. All runtimes get the same image-major batch, so CSR's time includes
    the transposition. A batch that would take longer than `MAX_CALL_SECONDS` is left out.
    """
    cpu = torch.device("cpu")
    # In contiguous format, since a network trained on a GPU is channels_last.
    plain = deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)
    networks = [
        (cpu, DENSE, plain),
        (cpu, CSR_SCIPY, csr_network(model, ScipyProduct)),
        (cpu, CSR_TORCH, csr_network(model, TorchProduct)),
    ]
    if device.type != "cpu":
        networks.append((device, DENSE, deepcopy(model).to(device).float().eval()))
    budget = seconds / (len(networks) * len(BATCHES))
    rows: list[Latency] = []
    with cpu_threads(THREADS), torch.inference_mode():
        for batch in BATCHES:
            calls: dict[tuple[torch.device, str], Callable[[], object]] = {}
            for place, runtime, network in networks:
                inputs = images[torch.arange(batch, device=images.device) % len(images)].to(place, torch.float32)
                call = partial(_run, network, place)
                if is_quick_enough(call, inputs):
                    calls[place, runtime] = partial(call, inputs)
                else:
                    log.info("%s on %s: batch %d takes over %g s", runtime, place.type, batch, MAX_CALL_SECONDS)
            rows += _rows(time_in_rounds(calls, budget), batch)
    order = [(place.type, runtime) for place, runtime, _ in networks]
    return sorted(rows, key=lambda row: order.index((row.device, row.runtime)))


def fastest_csr(rows: Sequence[Latency]) -> str | None:
    """The CSR runtime with the lowest median at batch 1, or None if none was timed."""
    candidates = [row for row in rows if row.runtime != DENSE and row.batch == 1]
    return min(candidates, key=lambda row: row.median_ms).runtime if candidates else None


def write_latency(path: Path, rows: Sequence[Latency]) -> None:
    """Write latency.csv atomically, one row per device, runtime and batch."""
    write_rows(path, Latency, rows)


def _run(network: nn.Module, device: torch.device, batch: Tensor) -> None:
    network(batch)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _rows(taken: Mapping[tuple[torch.device, str], Rounds], batch: int) -> Iterator[Latency]:
    for (device, runtime), rounds in taken.items():
        row = summary(device.type, THREADS, runtime, batch, rounds)
        dense = None if runtime == DENSE else taken.get((device, DENSE))
        yield row if dense is None else replace(row, **speedup(rounds, over=dense).columns("against_dense"))


def summary(device: str, threads: int, runtime: str, batch: int, rounds: Rounds) -> Latency:
    """The row of a batch from the seconds of its calls, without the speedup."""
    milliseconds = 1000 * np.concatenate([np.array(calls) for calls in rounds])
    p10, median, p90 = (float(value) for value in np.percentile(milliseconds, (10, 50, 90)))
    return Latency(device, threads, runtime, batch, median, p10, p90, len(milliseconds))


def is_quick_enough(call: Callable[[Any], object], inputs: Tensor | np.ndarray) -> bool:
    """Estimate a large batch's time from a few images; timed twice, since a network's first call is always slow."""
    if len(inputs) <= PROBE_IMAGES:
        return True
    probe = partial(call, inputs[:PROBE_IMAGES])
    return min(seconds_of(probe), seconds_of(probe)) * len(inputs) / PROBE_IMAGES <= MAX_CALL_SECONDS


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set the number of torch threads, and full float32 products: oneDNN, which a run may use, is slow at batch 1."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with full_float32():
            yield
    finally:
        torch.set_num_threads(threads)
