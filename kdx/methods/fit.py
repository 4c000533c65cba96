"""One fit: a network is trained with a method on data and teacher logits."""

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Data
from kdx.device.backend import Backend
from kdx.measure.accuracy import count_errors
from kdx.measure.sparsity import nonzero_count, percent_zero, weight_count
from kdx.methods.method import Method
from kdx.rng import derived_seed
from kdx.runs.folder import RunFolder
from kdx.training.checkpoint import Progress
from kdx.training.learner import PendingMetrics, TrainSpec
from kdx.training.trainer import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingInputs:
    """What a network learns from: the data and, if there is a teacher, its logits for every view.

    With `further_teachers` the logits are the mean of all teachers'.
    """

    data: Data
    teacher: nn.Module | None = None
    teacher_logits: Tensor | None = None
    further_teachers: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class FitSpec:
    """How one network is trained, and its folder; `stage` is the name of one fit among several.

    `pretrained` says that training starts from a checkpoint's weights.
    """

    title: str
    trainer: TrainerSettings
    seed: int
    folder: RunFolder
    stage: str = ""
    pretrained: bool = False

    @property
    def checkpoint(self) -> Path:
        """The file to resume from, which also marks a finished fit; removed when the run is finished."""
        return self.folder.path / f"checkpoint{self.stage and '-'}{self.stage}.safetensors"

    def at(self, stage: str, **trainer: Any) -> "FitSpec":
        """The spec of one of several fits in the same folder, with some of the trainer's settings changed."""
        return replace(
            self, stage=stage, title=f"{self.title}, {stage}", trainer=self.trainer.model_copy(update=trainer)
        )


AfterEpoch = Callable[[nn.Module, int], None]
"""Called with the student in training and the epoch's number, from 1, after every epoch and before its checkpoint."""


def fit(
    network: nn.Module,
    method: Method,
    inputs: TrainingInputs,
    spec: FitSpec,
    backend: Backend,
    after_epoch: AfterEpoch = lambda student, epoch: None,
) -> tuple[nn.Module, Progress]:
    """Train `network` with `method`; return the plain network and the training's progress."""
    train_spec = make_train_spec(network, method, inputs, spec, backend, after_epoch)
    progress = train(train_spec, backend)
    return method.finalize(train_spec.student), progress


def initial_figures(network: nn.Module, method: Method, spec: FitSpec) -> dict[str, float]:
    """Figures of a fit that are known before training.

    `NAME_reached` is the highest value of a setting that its schedule does not complete in these epochs, such as a long
    warm-up; `initial_sparsity_percent` is the share of weights that the method counts as pruned before training, if it
    may prune then, and is also logged.
    """
    figures = {f"{name}_reached": short.most for name, short in method.unreached(spec.trainer.epochs).items()}
    if not method.prunes_at_start:
        return figures
    # Of the initial weights, not of a checkpoint's, so that resuming a run does not change the figure.
    plain = method.finalize(method.prepare(deepcopy(network)))
    percent = percent_zero(weight_count(plain), int(nonzero_count(plain)))
    # The folder's name is needed because runs that are trained together share their logs.
    title, folder = spec.title, spec.folder.path.name
    log.info("%s, %s: %.2f %% of the weights are pruned before any training", title, folder, percent)
    return {**figures, "initial_sparsity_percent": percent}


def make_train_spec(
    network: nn.Module,
    method: Method,
    inputs: TrainingInputs,
    spec: FitSpec,
    backend: Backend,
    after_epoch: AfterEpoch = lambda student, epoch: None,
) -> TrainSpec:
    """The trainer's arguments for one fit.

    For every method, layers are substituted here, then moved to the device, then given to the optimizer.
    """
    data = inputs.data
    student = backend.to_device(method.prepare(network))
    objective = method.objective(student, inputs.teacher, data.train.per_epoch)

    validation = data.validation
    images = 0 if validation is None else len(validation.images)

    def evaluate(epoch: int) -> PendingMetrics:
        after_epoch(student, epoch)
        plain = method.finalize(deepcopy(student))
        weights, nonzero = weight_count(plain), nonzero_count(plain)
        wrong = None if validation is None else count_errors(plain, validation)

        def read() -> dict[str, float | None]:
            return {
                "val_error_percent": None if wrong is None else 100.0 * wrong.item() / images,
                "sparsity_percent": percent_zero(weights, int(nonzero)),
            }

        return read

    stored = inputs.teacher_logits
    return TrainSpec(
        student=student,
        objective=objective,
        evaluate=evaluate,
        title=spec.title,
        identity="/".join([spec.folder.path.name, data.fingerprint, *filter(None, [spec.stage])]),
        examples=data.train,
        teacher_logits=None
        if stored is None
        else method.transform_teacher_logits(stored, spec.seed, data.train.shifts),
        trainer=spec.trainer,
        # Every stage has its own random order of examples.
        seed=derived_seed(spec.seed, spec.stage) if spec.stage else spec.seed,
        checkpoint=spec.checkpoint,
    )
