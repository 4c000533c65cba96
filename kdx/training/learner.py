"""One model in training: its state, checkpoint, history and result."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Split
from kdx.errors import Diverged
from kdx.models.weights import weight_parameters
from kdx.rng import make_generator
from kdx.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from kdx.training.noise import NoiseSource
from kdx.training.objective import Objective, Schedule
from kdx.training.optimizer import Optimizer, learning_rate, step_numbers
from kdx.training.state import State
from kdx.training.step import Batch, Noise, hyperparameter_names

NAMED = 3
"""The maximum number of non-finite tensors that a message names."""

PendingMetrics = Callable[[], dict[str, float | None]]
"""Waits for the device and returns the figures."""

Evaluate = Callable[[int], PendingMetrics]
"""Starts computing the student's figures after epoch n (from 1): validation error, sparsity, ...

It does not wait for the device, so that several students can be evaluated before the first result is read.
"""


@dataclass(frozen=True)
class TrainSpec:
    """One training: its data and settings, the student, its objective, and the evaluation after every epoch.

    `identity` names the training, so that only its own checkpoint is loaded; `teacher_logits`, float32 or float16, has
    one row per view of `examples`, (samples * views, classes), or is None.
    """

    student: nn.Module
    objective: Objective
    evaluate: Evaluate
    title: str
    identity: str
    examples: Split
    teacher_logits: Tensor | None
    trainer: TrainerSettings
    seed: int
    checkpoint: Path

    def batch(self, chosen: Tensor) -> Batch:
        """The mini-batch of the views `chosen` (batch,), with their teacher logits in float32."""
        logits = self.teacher_logits
        # Logits stored as float16 are float32 from here on.
        return Batch(*self.examples.take(chosen), None if logits is None else logits.index_select(0, chosen).float())

    def order(self, epoch: int) -> Tensor:
        """The views (per_epoch,) of an epoch, in random order."""
        return self.examples.order(
            *(make_generator(self.seed, purpose, epoch) for purpose in ("order", "mirror", "shift"))
        )


class Learner:
    """A model in training; `progress` and the tensors of `state` are what a checkpoint holds.

    `failure` is the reason why its training was abandoned, or None; `fused_models` counts those trained together with
    it, itself included.
    """

    def __init__(self, spec: TrainSpec) -> None:
        self.spec, self.student = spec, spec.student
        self.failure: Diverged | None = None
        self.fused_models = 1
        trainer, examples = spec.trainer, spec.examples
        self.objective = spec.objective.with_label_smoothing(trainer.label_smoothing)
        self.optimizer = _optimizer(trainer, self.student, self.objective)
        self.batch_size = min(trainer.batch_size, examples.per_epoch)
        # An epoch's last, incomplete batch is dropped; every epoch has another order, so no example is always dropped.
        self.steps_per_epoch = examples.per_epoch // self.batch_size
        self.state = State.of(
            self.student,
            len(self.objective.terms),
            self.objective.langevin,
            squares=self.optimizer.kind == "adam",
            average=self.optimizer.averages,
        )
        device = examples.images.device
        images, _ = examples.take(torch.arange(self.batch_size, device=device))
        generator = make_generator(self.spec.seed, "noise", device=device)
        self.noise = NoiseSource(self.student, images, generator, self.objective.noise_specs)
        self.progress = Progress()
        # The best epoch's network so far, for early stopping.
        self.best = {name: value.clone() for name, value in self.state.result().items()} if trainer.patience else {}

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.progress.history)

    @property
    def done(self) -> bool:
        """Whether training has ended: all epochs done, stopped early, or failed."""
        trainer, best = self.spec.trainer, self.progress.best_epoch
        impatient = trainer.patience is not None and best is not None and self.epoch - best >= trainer.patience
        return self.failure is not None or impatient or self.epoch >= trainer.epochs

    def move(self, state: State, noise: Noise) -> None:
        """Continue in the memory of `state` and `noise`, which hold the same values."""
        self._point_at(state.network())
        self.state, self.noise.buffers = state, noise

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one; return whether there was."""
        tensors = self._tensors()
        found = load_checkpoint(self.spec.checkpoint, self.spec.identity, tensors)
        if found is not None:
            self.progress = found
            self.noise.seek(tensors["noise_position"])
        return found is not None

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(self.spec.checkpoint, self.spec.identity, self.progress, self._tensors())

    def mean_losses(self) -> list[float]:
        """The means over the epoch's steps of the loss and of every term; waits for the device."""
        return (self.state.sums / self.steps_per_epoch).tolist()

    def first_nonfinite(self) -> Diverged | None:
        """The loss term that is no longer finite, if the loss is not, as an exception; waits for the device."""
        return self.diverged() if self.state.broken[0] else None

    def diverged(self) -> Diverged | None:
        """Whatever is no longer finite, as an exception: a loss term, or a gradient or weight that the loss hides."""
        steps, *by_term = (int(count) for count in self.state.broken.tolist())
        # Parameters are frozen from the step on in which the loss is not finite, so what is not finite in them was its
        # cause; buffers have been updated since.
        step, broken = self.progress.steps - steps, self.state.broken_parts(buffers=not steps)
        if steps and not broken:
            step += 1
            broken = [name for name, count in zip(self.objective.terms, by_term, strict=True) if count == steps]
        if not steps and not broken:
            return None
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        return Diverged(
            f"{self.spec.title}: {', '.join(broken[:NAMED]) or 'loss'}{more} is no longer finite in epoch"
            f" {epoch + 1}, step {place + 1}; try a lower {' or '.join(self._step_sizes())}"
        )

    def evaluate_epoch(self) -> PendingMetrics:
        """Start evaluating the student at the end of an epoch in which everything was finite."""
        with self._as_result():
            return self.spec.evaluate(self.epoch + 1)

    def close_epoch(self, means: list[float], seen: PendingMetrics) -> None:
        """Add the epoch to the history: the means of the loss terms, and the evaluation `seen`."""
        terms = dict(zip(["loss", *self.objective.terms], means, strict=True))
        result = self.state.result()
        parameters = {name: result[f"parameter/{name}"] for name in self.state.parameters}
        monitors = {name: monitor(parameters) for name, monitor in self.objective.monitors.items()}
        last_step = self.epoch + 1 - 1 / self.steps_per_epoch
        seconds = self.progress.epoch_seconds
        figures = {
            "epoch": self.epoch + 1,
            **terms,
            **seen(),
            **monitors,
            **{key.rpartition(".")[2]: size(last_step) for key, size in self._step_sizes().items()},
            "seconds": seconds,
        }
        self.progress.history.append(figures)
        if self.best:
            self._keep_if_best()
        self.progress.epoch_seconds = 0.0
        self.state.sums.zero_()

    def take_result(self) -> None:
        """Give the student its final weights: those of the best epoch with early stopping, or the running average."""
        result = self.best or self.state.average
        for name, value in self.state.network().items() if result else ():
            value.copy_(result[name])

    def progress_metrics(self) -> dict[str, float]:
        """The figures to show during training."""
        latest = self.progress.history[-1]
        shown = {name: latest.get(name) for name in ("loss", "val_error_percent", "sparsity_percent")}
        return {name: value for name, value in shown.items() if value is not None}

    def schedule(self, epoch: int) -> np.ndarray:
        """The hyper-parameters of every step of an epoch: float64 (steps, numbers)."""
        count = self.steps_per_epoch
        times = [epoch + index / count for index in range(count)]
        columns = {name: [number(time) for time in times] for name, number in self.objective.hyperparameters.items()}
        columns |= {"lr": [self._lr(time) for time in times]}
        columns |= step_numbers(self.spec.trainer, epoch * count + 1, count)
        return np.array([columns[name] for name in hyperparameter_names(self.objective, self.optimizer)]).T

    def _lr(self, time_in_epochs: float) -> float:
        return learning_rate(self.spec.trainer, time_in_epochs, 1 / self.steps_per_epoch)

    def _step_sizes(self) -> dict[str, Schedule]:
        """The settings of the step size, by key: the learning rate, if any parameter has one, and others."""
        names = dict.fromkeys(how.eta for how in self.objective.langevin.values())
        sampled = {f"method.{name}": self.objective.hyperparameters[name] for name in names}
        return ({"trainer.lr": self._lr} if self.state.first else {}) | sampled

    def _keep_if_best(self) -> None:
        *earlier, error = (row["val_error_percent"] for row in self.progress.history)
        assert error is not None, "the configuration admits patience with a validation split only"
        if all(before is not None and error < before for before in earlier):
            self.progress.best_epoch = self.epoch
            for name, value in self.state.result().items():
                self.best[name].copy_(value)

    def _tensors(self) -> dict[str, Tensor]:
        best = {f"best/{name}": value for name, value in self.best.items()}
        return self.state.tensors() | best | {"noise_position": self.noise.position()}

    def _point_at(self, network: Mapping[str, Tensor]) -> None:
        """Let the student's parameters and buffers share the memory of these tensors."""
        for name, parameter in self.student.named_parameters():
            parameter.data = network[f"parameter/{name}"]
        for name, buffer in self.student.named_buffers():
            buffer.data = network[f"buffer/{name}"]

    @contextmanager
    def _as_result(self) -> Iterator[None]:
        """The student with the weights it would end with now: the running average, if there is one."""
        if not self.state.average:
            yield
            return
        self._point_at(self.state.average)
        try:
            yield
        finally:
            self._point_at(self.state.network())


def _optimizer(trainer: TrainerSettings, student: nn.Module, objective: Objective) -> Optimizer:
    """The optimizer that the trainer asks for; weight decay leaves out biases, variances and batch norm."""
    weights = [name for name in weight_parameters(student) if name not in objective.langevin]
    return Optimizer(trainer.optimizer, tuple(weights) if trainer.weight_decay else (), trainer.average is not None)
