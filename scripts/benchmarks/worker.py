"""A worker process: trains one variant of one job, one epoch whenever it is told to.

Every variant has a process of its own, so that thread pools, matrix-product routes and denormal flags of one never act
on another. Protocol: one JSON object per line on stdout, first what it is ready with, then the seconds of each epoch;
every line on stdin starts an epoch, and the end of stdin ends the process.
"""

import json
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils.data import DataLoader, Subset

from benchmarks import usual
from benchmarks.work import REDUCED, Order, Work
from kdx.config.schema import Config
from kdx.data import load_data
from kdx.device.backend import prepare_device
from kdx.logits import teacher_logits
from kdx.methods.method import build_method
from kdx.models import build_model
from kdx.training.learner import PendingMetrics, TrainSpec
from kdx.training.trainer import train

PEAK_SIZE = 2048
SEED = 0


class Pace:
    """Waits for the word to go, and reports how long it took to be done."""

    def __init__(self, replies: IO[str]) -> None:
        self._replies, self._started = replies, 0.0

    def ready(self, facts: dict[str, Any]) -> None:
        """Say that all is loaded, and wait."""
        self._reply(facts)
        self._wait()

    def done(self) -> None:
        """Report the seconds since the word to go, and wait for the next."""
        self._reply({"seconds": time.perf_counter() - self._started})
        self._wait()

    def _reply(self, content: dict[str, Any]) -> None:
        print(json.dumps(content), file=self._replies, flush=True)

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit
        self._started = time.perf_counter()


def run_usual(order: Order, config: Config, pace: Pace) -> None:
    """The usual way, for ever."""
    torch.set_num_threads(order.threads)
    torch.manual_seed(SEED)
    work = Work.of(order.job, config)
    with usual.images_of(config.dataset) as images:
        shape, classes = (1, 28, 28), 10
        if order.steps is not None:
            images = Subset(images, range(order.steps * order.batch_size))
        loader = DataLoader(images, order.batch_size, shuffle=True, drop_last=True, num_workers=order.loader_workers)
        training = usual.UsualTraining(
            usual.network(work.widths(784, classes), work.method),
            build_model(work.teacher, shape, classes, SEED),
            work.method,
            work.trainer.lr,
            len(loader) * order.batch_size,
            usual.reduced_block_norm if order.variant == REDUCED else usual.block_norm,
        )
        pace.ready(_facts(len(loader), work.gflop_per_step(784, classes), "default", torch.float32))
        while True:
            training.run_epoch(loader)
            pace.done()


def run_kdx(order: Order, config: Config, pace: Pace) -> None:
    """kdx's own trainer on kdx's own data and logit store, until it is told to stop."""
    backend = prepare_device(config.device)
    work = Work.of(order.job, config)
    data = load_data(config.dataset)
    # Untrained: the time of a step does not depend on the values.
    teacher = build_model(work.teacher, data.image_shape, data.classes, SEED).eval()
    method = build_method(work.method)
    logits = teacher_logits(teacher, data, Path(order.outputs)) if method.needs_teacher else None
    examples = len(data.train) if order.steps is None else order.steps * order.batch_size
    student = method.prepare(build_model(work.student, data.image_shape, data.classes, SEED))
    training = partial(
        TrainSpec,
        title=f"{order.job} {order.variant}",
        identity="benchmark",
        examples=replace(data.train, images=data.train.images[:examples], labels=data.train.labels[:examples]),
        teacher_logits=None if logits is None else logits[:examples],
        trainer=work.trainer,
        seed=SEED,
        checkpoint=Path(order.outputs, "no-checkpoint"),
    )
    dtype = torch.bfloat16 if backend.precision == "bf16" else torch.float32
    steps = examples // order.batch_size
    pace.ready(_facts(steps, work.gflop_per_step(data.train.images[0].numel(), data.classes), backend.gemm, dtype))

    def epoch_is_over(_epoch: int) -> PendingMetrics:
        pace.done()
        return dict

    train(training(student, method.objective(student, teacher, examples), epoch_is_over), backend)


def peak_gflops(dtype: torch.dtype) -> float:
    """The best rate of a large matrix product under this process's settings: what bounds every step."""
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / best / 1e9


def _facts(steps: int, gflop_per_step: float, gemm: str, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "steps_per_epoch": steps,
        "gflop_per_step": gflop_per_step,
        "gemm": gemm,
        "peak_gflops": peak_gflops(dtype),
    }


def main() -> None:
    """Run the order in the first argument."""
    order = Order(**json.loads(sys.argv[1]))
    # What else is printed goes to stderr; stdout is for replies alone.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run = run_usual if order.usual else run_kdx
    run(order, order.config(), Pace(replies))


if __name__ == "__main__":
    main()
