"""A worker process of `scripts/benchmark gpu`: one job in some ways, one after another, each with its failure.

It writes a line of JSON to stdout before each way (`{"way": ...}`) and one after it (`{"way": ..., "result": ...}`).
"""

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import gpu_usual
from benchmarks.gpu_work import (
    FUSED,
    SEED,
    USUAL,
    Order,
    data_of,
    gflop_per_step,
    precision,
    steps_of,
    variants,
)
from kdx.config.schema import Config
from kdx.data.dataset import Data
from kdx.device.backend import Backend, prepare_device
from kdx.device.cuda_graphs import CudaGraphs, captured
from kdx.errors import one_line
from kdx.methods.fit import FitSpec, TrainingInputs, make_train_spec
from kdx.models import build_model
from kdx.runs.folder import RunFolder
from kdx.training.learner import Evaluate, PendingMetrics, TrainSpec
from kdx.training.trainer import train_fused

LEAST_EPOCHS = 3
# For the peak: large enough to fill a GPU, and one that a CPU can do.
PEAK_SIZE, PEAK_SIZE_CPU = 8192, 512
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


class Enough(Exception):
    """The time of a way is over."""


class Clock:
    """Training and evaluation of every epoch, in seconds; ends the training when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.training: list[float] = []
        self.evaluation: list[float] = []
        self.losses: list[float] = []
        self._end = time.perf_counter() + seconds
        self._mark = time.perf_counter()

    def around(self, evaluate: Evaluate, first: bool, last: bool) -> Evaluate:
        """The evaluation of one of the models that are trained together, timed."""

        def timed(epoch: int) -> PendingMetrics:
            if first:
                self._lap(self.training)
            seen = evaluate(epoch)

            def read() -> dict[str, float | None]:
                figures = seen()
                if last:
                    self._lap(self.evaluation)
                    if epoch >= LEAST_EPOCHS and time.perf_counter() > self._end:
                        raise Enough
                return figures

            return read

        return timed

    def _lap(self, laps: list[float]) -> None:
        now = time.perf_counter()
        laps.append(now - self._mark)
        self._mark = now


def measure(order: Order, way: str, data: Data) -> dict[str, Any]:
    """One way's figures; `seconds_per_100_epochs` is what a run's training would take with its evaluations."""
    config = order.config(way)
    whole, steps = steps_of(order, data)
    if way == USUAL:
        figures = gpu_usual.measure(config, data, order.device, order.seconds_of(way), whole)
    else:
        figures = _kdx(order, way, config, data, steps)
    gflop = gflop_per_step(config, data) * figures["models"]
    backend = prepare_device(config.device)
    peak = peak_gflops(backend)
    per_step = figures["seconds_per_step"]
    own = own_products_seconds(config, data, backend) * figures["models"]
    return figures | {
        "seconds_per_epoch": per_step * whole,
        "seconds_per_100_epochs": figures["setup_seconds"] + 100 * (per_step * whole + figures["evaluation_seconds"]),
        "steps_per_epoch": whole,
        "gflop_per_step": gflop,
        "tflops": gflop / per_step / 1e3,
        "peak_tflops": peak / 1e3,
        "of_peak": gflop / per_step / peak,
        "own_products_seconds": own,
        "of_own_products": own / per_step,
    }


def _kdx(order: Order, way: str, config: Config, data: Data, steps: int) -> dict[str, Any]:
    backend = prepare_device(config.device)
    examples = steps * config.trainer.batch_size
    train = replace(data.train, images=data.train.images[:examples], labels=data.train.labels[:examples])
    own = replace(data, train=train).to(backend.device)
    # Untrained, and logits that are drawn: the time of a step does not depend on the values.
    teacher = build_model(config.teacher.network(), data.image_shape, data.classes, SEED).to(backend.device).eval()
    logits = torch.randn(examples, data.classes, generator=torch.Generator().manual_seed(SEED)).to(backend.device)
    count = order.models if way.startswith(FUSED) else 1
    clock = Clock(order.seconds_of(way))
    train_specs = []
    for index, method in enumerate(variants(config.method, count)):
        spec = FitSpec(
            f"{order.job} {way}", config.trainer, SEED, RunFolder(Path(order.outputs, order.job, way, str(index)))
        )
        student = build_model(config.student, data.image_shape, data.classes, SEED + index)
        inputs = TrainingInputs(own, teacher, logits if method.needs_teacher else None)
        train_specs.append(make_train_spec(student, method, inputs, spec, backend))
    return _timed(train_specs, backend, steps, clock)


def _timed(train_specs: list[TrainSpec], backend: Backend, steps: int, clock: Clock) -> dict[str, Any]:
    last = len(train_specs) - 1
    timed = [
        replace(each, evaluate=clock.around(each.evaluate, index == 0, index == last))
        for index, each in enumerate(train_specs)
    ]
    cuda = backend.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    clock._mark = time.perf_counter()
    with suppress(Enough):
        for trained in train_fused(timed, backend):
            if trained.failure is not None:
                raise trained.failure
    seconds = median(clock.training[1:])
    return {
        "models": len(train_specs),
        "measured_epochs": len(clock.training),
        "seconds_per_step": seconds / steps,
        "setup_seconds": max(0.0, clock.training[0] - seconds),
        "evaluation_seconds": median(clock.evaluation),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "training_seconds": clock.training,
    }


def peak_gflops(backend: Backend) -> float:
    """The rate of a large matrix product in the backend's precision."""
    cuda = backend.device.type == "cuda"
    size = PEAK_SIZE if cuda else PEAK_SIZE_CPU
    left, right = (torch.randn(size, size, device=backend.device).to(DTYPES[backend.precision]) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: torch.mm(left, right), backend) / 1e9


def own_products_seconds(config: Config, data: Data, backend: Backend) -> float:
    """The student's own matrix products and convolutions of one step, forward and backward, and nothing else."""
    student = build_model(config.student, data.image_shape, data.classes, SEED).to(backend.device).eval()
    dtype, layers = DTYPES[backend.precision], []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layers.append(_products(layer, inputs[0].shape, output.shape, dtype, first=not layers))

    for layer in student.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        student(torch.zeros(config.trainer.batch_size, *data.image_shape, device=backend.device))
        # Mean and variance are a product each.
        times = 2 if "variational" in config.method["parts"] else 1

        def run() -> None:
            for products in layers * times:
                products()

        with captured(run, CudaGraphs() if backend.device.type == "cuda" else None) as play:
            return _seconds(play, backend)


def _products(
    layer: nn.Linear | nn.Conv2d, inputs: torch.Size, outputs: torch.Size, dtype: torch.dtype, *, first: bool
) -> Callable[[], object]:
    """The products of one layer: of its outputs, its weights' gradient and, but for the first layer, its inputs'."""
    weight = layer.weight.detach().to(dtype)
    given, gradient = (torch.randn(shape, device=weight.device, dtype=dtype) for shape in (inputs, outputs))
    if isinstance(layer, nn.Linear):

        def linear() -> None:
            torch.mm(given, weight.T)
            torch.mm(gradient.T, given)
            if not first:
                torch.mm(gradient, weight)

        return linear
    if weight.device.type == "cuda":
        weight, given, gradient = (
            each.contiguous(memory_format=torch.channels_last) for each in (weight, given, gradient)
        )
    stride, padding, dilation, groups = layer.stride, layer.padding, layer.dilation, layer.groups

    def convolution() -> None:
        torch.conv2d(given, weight, None, stride, padding, dilation, groups)
        torch.ops.aten.convolution_backward(
            gradient, given, weight, None, stride, padding, dilation, False, [0, 0], groups, [not first, True, False]
        )

    return convolution


def _seconds(run: Callable[[], object], backend: Backend, repetitions: int = 10) -> float:
    """The shortest time of several rounds, per repetition."""
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(repetitions):
            run()
        if backend.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - started) / repetitions)
    return best


def main() -> None:
    """Run the order in the first argument."""
    order = Order(**json.loads(sys.argv[1]))
    # What else is printed goes to stderr; stdout is for replies alone.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=replies, flush=True)

    data, absent = data_of(order.config(order.ways[0]), tiny=order.tiny)
    for way in order.ways:
        reply({"way": way})
        try:
            result = measure(order, way, data) | {"precision": precision(way), "synthetic": absent}
        except Exception as failure:
            # Whole, because the machine is gone by the time that somebody asks why.
            result = {
                "failed": f"{type(failure).__name__}: {one_line(failure)[:300]}",
                "traceback": traceback.format_exc(),
            }
        reply({"way": way, "result": result})
        gc.collect()
        if order.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
