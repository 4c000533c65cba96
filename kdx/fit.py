"""One fit: a network, a method and what it learns from, handed to the trainer."""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdx.checkpoint import Progress
from kdx.config import TrainerSettings
from kdx.data.dataset import Data
from kdx.device import Engine
from kdx.errors import Diverged
from kdx.measure.accuracy import wrong_count
from kdx.measure.sparsity import nonzero_count, percent_zero, weight_count
from kdx.member import Reading
from kdx.methods import Method
from kdx.runs import RunFolder
from kdx.stacked import Way
from kdx.streams import derived_seed
from kdx.trainer import Trainee, Training, train, train_together

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What a network learns from: data, and the teacher with the logits of every view where there is one.

    Where there are further teachers, the logits are the mean of all.
    """

    data: Data
    teacher: nn.Module | None = None
    teacher_logits: Tensor | None = None
    further_teachers: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How one network is trained, and the folder that it belongs to; `stage` names one fit of several.

    `pretrained` says that the network comes with trained weights, from which training goes on.
    """

    title: str
    trainer: TrainerSettings
    seed: int
    folder: RunFolder
    stage: str = ""
    pretrained: bool = False

    @property
    def checkpoint(self) -> Path:
        """The file from which the training goes on, or that shows it finished; gone when the folder is finished."""
        return self.folder.path / f"checkpoint{self.stage and '-'}{self.stage}.safetensors"

    def at(self, stage: str, **trainer: Any) -> "Plan":
        """The plan of one of several fits in the same folder, whose trainer differs in some settings."""
        return replace(
            self, stage=stage, title=f"{self.title}, {stage}", trainer=self.trainer.model_copy(update=trainer)
        )


AfterEpoch = Callable[[nn.Module, int], None]
"""What is done with the student, as it is trained, after epoch number n (from 1), before a checkpoint is written."""


def fit(
    network: nn.Module,
    method: Method,
    lesson: Lesson,
    plan: Plan,
    engine: Engine,
    after_epoch: AfterEpoch = lambda student, epoch: None,
) -> tuple[nn.Module, Progress]:
    """Train `network` by `method`; give back the plain network and the history."""
    trainee = trainee_of(network, method, lesson, plan, engine, after_epoch)
    progress = train(trainee.student, trainee.objective, trainee.training, engine, trainee.evaluate)
    return method.finalize(trainee.student), progress


def initial_figures(network: nn.Module, method: Method, plan: Plan) -> dict[str, float]:
    """What is known of a fit before it begins.

    `NAME_reached` is the most that a setting comes to which is not reached in these epochs, such as a weight that warms
    up for longer; `initial_sparsity_percent` is there where the method may prune before any training, as the log tells
    too (SPEC 5).
    """
    figures = {f"{name}_reached": short.most for name, short in method.unreached(plan.trainer.epochs).items()}
    if not method.prunes_at_start:
        return figures
    # Of the initial weights and not of a checkpoint's, so that a run which goes on has the figure that it began with.
    plain = method.finalize(method.prepare(deepcopy(network)))
    percent = percent_zero(weight_count(plain), int(nonzero_count(plain)))
    # Runs that are trained together share their logs.
    title, folder = plan.title, plan.folder.path.name
    log.info("%s, %s: %.2f %% of the weights are pruned before any training", title, folder, percent)
    return {**figures, "initial_sparsity_percent": percent}


@dataclass(frozen=True)
class Fit:
    """What `fit` is given of one of several networks that are trained together."""

    network: nn.Module
    method: Method
    plan: Plan


@dataclass(frozen=True)
class Fitted:
    """What comes of it: the plain network, the history, how many were trained together, and `initial_figures`."""

    network: nn.Module
    progress: Progress
    models: int
    initial: dict[str, float]


def fit_together(fits: Sequence[Fit], lesson: Lesson, engine: Engine, way: Way) -> list[Fitted | Diverged]:
    """`fit` for several networks of one structure, in step; where one diverged, the exception."""
    # Before the networks are made students and trained, in place.
    initial = [initial_figures(each.network, each.method, each.plan) for each in fits]
    trainees = [trainee_of(each.network, each.method, lesson, each.plan, engine) for each in fits]
    trained = train_together(trainees, engine, way)
    return [
        one.failure or Fitted(each.method.finalize(trainee.student), one.progress, one.models, figures)
        for each, trainee, one, figures in zip(fits, trainees, trained, initial, strict=True)
    ]


def trainee_of(
    network: nn.Module,
    method: Method,
    lesson: Lesson,
    plan: Plan,
    engine: Engine,
    after_epoch: AfterEpoch = lambda student, epoch: None,
) -> Trainee:
    """What the trainer is given of one fit.

    Layers are substituted, then moved to the device, then handed to the optimiser: here, for every method.
    """
    data = lesson.data
    student = engine.placed(method.prepare(network))
    objective = method.objective(student, lesson.teacher, data.train.per_epoch)

    validation = data.validation
    images = 0 if validation is None else len(validation.images)

    def evaluate(epoch: int) -> Reading:
        after_epoch(student, epoch)
        plain = method.finalize(deepcopy(student))
        weights, nonzero = weight_count(plain), nonzero_count(plain)
        wrong = None if validation is None else wrong_count(plain, validation)

        def read() -> dict[str, float | None]:
            return {
                "val_error_percent": None if wrong is None else 100.0 * wrong.item() / images,
                "sparsity_percent": percent_zero(weights, int(nonzero)),
            }

        return read

    stored = lesson.teacher_logits
    training = Training(
        title=plan.title,
        identity="/".join([plan.folder.path.name, data.fingerprint, *filter(None, [plan.stage])]),
        examples=data.train,
        teacher_logits=None if stored is None else method.targets(stored, plan.seed, data.train.shifts),
        trainer=plan.trainer,
        # Every stage sees the examples in orders of its own.
        seed=derived_seed(plan.seed, plan.stage) if plan.stage else plan.seed,
        checkpoint=plan.checkpoint,
    )
    return Trainee(student, objective, training, evaluate)
