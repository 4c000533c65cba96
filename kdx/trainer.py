"""The only training loop."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from kdx import display
from kdx.checkpoint import Progress, load_checkpoint, save_checkpoint
from kdx.compiled import compiled_step
from kdx.config import TrainerSettings
from kdx.data.dataset import Split
from kdx.device import Engine
from kdx.errors import Diverged, Interrupted
from kdx.noise import NoiseSource
from kdx.objective import Objective, Schedule
from kdx.step import BETA1, BETA2, Batch, Noise, RunStep, State, make_step, number_names
from kdx.streams import stream

Evaluate = Callable[[int], dict[str, float | None]]
"""Figures of the student as it stands after epoch n (from 1), for the history: validation error, sparsity, ..."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What one call of `train` works on, besides the student and its objective.

    `identity` names the training, so that no other one's checkpoint is taken for its own; `teacher_logits` has one
    row for every view of `examples`, (samples * views, classes), or is None.
    """

    title: str
    identity: str
    examples: Split
    teacher_logits: Tensor | None
    trainer: TrainerSettings
    seed: int
    checkpoint: Path

    def batch(self, chosen: Tensor) -> Batch:
        """The examples of these numbers (batch,), with their teacher logits."""
        logits = self.teacher_logits
        return Batch(*self.examples.take(chosen), None if logits is None else logits.index_select(0, chosen))


def train(student: nn.Module, objective: Objective, training: Training, engine: Engine, evaluate: Evaluate) -> Progress:
    """Minimise the objective over the student's parameters, in place, and give the history and the time it took.

    Goes on from the checkpoint where there is one. Raises Interrupted after writing a checkpoint when the process is
    asked to stop, and Diverged when a loss term is no longer finite.
    """
    with _stop_requests() as stop, display.stage(training.title, training.trainer.epochs) as stage:
        loop = _Loop(student, objective, training, engine, stop)
        loop.resume()
        stage.advance(loop.epoch)
        while not loop.done:
            loop.run_epoch()
            loop.close_epoch(evaluate)
            stage.advance(loop.epoch, loop.headline())
            loop.heed()
        loop.finish()
    return loop.progress


class _Loop:
    """A training under way; `progress` and the state's tensors are all that a checkpoint must hold."""

    def __init__(
        self, student: nn.Module, objective: Objective, training: Training, engine: Engine, stop: threading.Event
    ) -> None:
        self.training, self.objective, self.stop = training, objective, stop
        self.saved_at = self.mark = time.monotonic()
        trainer, examples = training.trainer, training.examples
        self.batch_size = min(trainer.batch_size, examples.per_epoch)
        # The last incomplete batch of an epoch is left out; every epoch has another order, so no example is.
        self.steps_per_epoch = examples.per_epoch // self.batch_size
        self.state = State.of(student, len(objective.terms), objective.langevin)
        self.device = examples.images.device
        images, _ = examples.take(torch.arange(self.batch_size, device=self.device))
        generator = stream(training.seed, "noise", device=self.device)
        self.noise = NoiseSource(student, images, generator, objective.draws)
        self.progress = Progress()
        # The network of the best epoch so far, where the training may stop early.
        self.best = {name: value.clone() for name, value in self.state.network().items()} if trainer.patience else {}
        self.step = _engine_step(student, objective, training, engine, trainer.epochs * self.steps_per_epoch)

    @property
    def epoch(self) -> int:
        return len(self.progress.history)

    @property
    def done(self) -> bool:
        trainer, best = self.training.trainer, self.progress.best_epoch
        impatient = trainer.patience is not None and best is not None and self.epoch - best >= trainer.patience
        return impatient or self.epoch >= trainer.epochs

    def resume(self) -> None:
        tensors = self._tensors()
        found = load_checkpoint(self.training.checkpoint, self.training.identity, tensors)
        if found is not None:
            self.progress = found
            self.noise.seek(tensors["noise_position"])
            log.info("%s: continued at step %d", self.training.title, found.steps)

    def run_epoch(self) -> None:
        epoch, examples = self.epoch, self.training.examples
        order = examples.order(*(stream(self.training.seed, purpose, epoch) for purpose in ("order", "mirror")))
        rows = self._rows(epoch)
        for index in range(self.progress.steps - epoch * self.steps_per_epoch, self.steps_per_epoch):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            self.step(self.state, chosen, self.noise.draw(), rows[index])
            self.progress.steps += 1
            if index + 1 < self.steps_per_epoch:
                self.heed()

    def close_epoch(self, evaluate: Evaluate) -> None:
        # Reading the sums waits for the device, so the lap ends when the work does.
        means = (self.state.sums / self.steps_per_epoch).tolist()
        self._lap(training=True)
        terms = dict(zip(["loss", *self.objective.terms], means, strict=True))
        broken = [name for name in self.objective.terms if not isfinite(terms[name])]
        if broken or not isfinite(means[0]):
            raise Diverged(
                f"{self.training.title}: {', '.join(broken) or 'loss'} is no longer finite in epoch"
                f" {self.epoch + 1}; try a lower {' or '.join(self._step_sizes())}"
            )
        monitors = {name: monitor(self.state.parameters) for name, monitor in self.objective.monitors.items()}
        last_step = self.epoch + 1 - 1 / self.steps_per_epoch
        seconds = self.progress.epoch_seconds
        figures = {
            "epoch": self.epoch + 1,
            **terms,
            **evaluate(self.epoch + 1),
            **monitors,
            **{key.rpartition(".")[2]: size(last_step) for key, size in self._step_sizes().items()},
            "seconds": seconds,
        }
        self.progress.history.append(figures)
        if self.best:
            self._keep_if_best()
        self.progress.epoch_seconds = 0.0
        self.state.sums.zero_()
        self._lap(training=False)

    def finish(self) -> None:
        """Write the last checkpoint, so that what follows the training repeats nothing of it, and take the best."""
        if self.epoch:
            self._save()
        for name, value in self.state.network().items() if self.best else ():
            value.copy_(self.best[name])

    def heed(self) -> None:
        """Write a checkpoint when it is time, or when the process is asked to stop; then stop."""
        stop = self.stop.is_set()
        if not stop and time.monotonic() - self.saved_at < self.training.trainer.checkpoint_seconds:
            return
        self._save()
        if stop:
            raise Interrupted(f"{self.training.title}: stopped in epoch {self.epoch + 1}; the same command goes on")

    def headline(self) -> dict[str, float]:
        latest = self.progress.history[-1]
        shown = {name: latest.get(name) for name in ("loss", "val_error_percent", "sparsity_percent")}
        return {name: value for name, value in shown.items() if value is not None}

    def _rows(self, epoch: int) -> Tensor:
        """The numbers of every step of an epoch: (steps, numbers), computed in float64."""
        names, numbers = number_names(self.objective), self.objective.numbers
        rows = []
        for index in range(self.steps_per_epoch):
            time_in_epochs = epoch + index / self.steps_per_epoch
            steps = epoch * self.steps_per_epoch + index + 1
            optimiser = {
                "lr": self._lr(time_in_epochs),
                "steps": steps,
                "bias1": 1 - BETA1**steps,
                "bias2": 1 - BETA2**steps,
            }
            rows.append([optimiser[name] if name in optimiser else numbers[name](time_in_epochs) for name in names])
        return torch.tensor(rows, dtype=torch.float32, device=self.device)

    def _lr(self, time_in_epochs: float) -> float:
        trainer = self.training.trainer
        decaying = trainer.epochs * (1 - trainer.hold)
        return trainer.lr * (min(1.0, (trainer.epochs - time_in_epochs) / decaying) if decaying else 1.0)

    def _step_sizes(self) -> dict[str, Schedule]:
        """What the user set for how far a step goes, by its key: Adam's rate, where it updates anything, and others."""
        names = dict.fromkeys(how.eta for how in self.objective.langevin.values())
        sampled = {f"method.{name}": self.objective.numbers[name] for name in names}
        return ({"trainer.lr": self._lr} if self.state.first else {}) | sampled

    def _keep_if_best(self) -> None:
        *earlier, error = (row["val_error_percent"] for row in self.progress.history)
        assert error is not None, "the configuration admits patience with a validation split only"
        if all(before is not None and error < before for before in earlier):
            self.progress.best_epoch = self.epoch
            for name, value in self.state.network().items():
                self.best[name].copy_(value)

    def _save(self) -> None:
        self._lap(training=True)
        save_checkpoint(self.training.checkpoint, self.training.identity, self.progress, self._tensors())
        self.saved_at = time.monotonic()

    def _tensors(self) -> dict[str, Tensor]:
        best = {f"best/{name}": value for name, value in self.best.items()}
        return self.state.tensors() | best | {"noise_position": self.noise.position()}

    def _lap(self, *, training: bool) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self.mark
        if training:
            self.progress.epoch_seconds += now - self.mark
        self.mark = now


def _engine_step(student: nn.Module, objective: Objective, training: Training, engine: Engine, steps: int) -> RunStep:
    def make(eager: bool) -> RunStep:
        step = make_step(student, objective, eager=eager, autocast=engine.autocast)

        # The batch is put together here, so that a compiler makes one pass of reading and preprocessing it.
        def gathering(state: State, chosen: Tensor, noise: Noise, row: Tensor) -> None:
            step(state, training.batch(chosen), noise, row)

        return gathering

    return compiled_step(make, required=engine.compile is True) if engine.compiles(student, steps) else make(True)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, so that a step is never cut in half; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
