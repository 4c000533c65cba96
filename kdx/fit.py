"""From a network and a method to a finished folder: what teachers, students and chains of students share."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor, nn

from kdx import __version__
from kdx.checkpoint import Progress
from kdx.config import TrainerSettings
from kdx.data.dataset import Data
from kdx.device import Engine
from kdx.files import write_csv
from kdx.measure import Measurements
from kdx.measure.accuracy import error_percent
from kdx.measure.latency import write_latency
from kdx.measure.sparsity import layers, percent_zero, write_layers
from kdx.methods import Method
from kdx.runs import RunFolder
from kdx.trainer import Training, train


@dataclass(frozen=True)
class Lesson:
    """What a network learns from: data, and the teacher with the logits of every view where there is one."""

    data: Data
    teacher: nn.Module | None = None
    teacher_logits: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """How one network is trained, and the folder that it belongs to."""

    title: str
    trainer: TrainerSettings
    seed: int
    folder: RunFolder

    @property
    def checkpoint(self) -> Path:
        """The file from which the training goes on; it is gone when the folder is finished."""
        return self.folder.path / "checkpoint.safetensors"


def fit(network: nn.Module, method: Method, lesson: Lesson, plan: Plan, engine: Engine) -> tuple[nn.Module, Progress]:
    """Train `network` by `method`; give back the plain network and the history.

    Layers are substituted, then moved to the device, then handed to the optimiser: here, for every method.
    """
    data = lesson.data
    student = method.prepare(network).to(engine.device)
    objective = method.objective(student, lesson.teacher, data.train.per_epoch)

    def evaluate() -> dict[str, float | None]:
        plain = method.finalize(deepcopy(student))
        rows = layers(plain)
        return {
            "val_error_percent": None if data.validation is None else error_percent(plain, data.validation),
            "sparsity_percent": percent_zero(sum(row.weights for row in rows), sum(row.nonzero for row in rows)),
        }

    training = Training(
        title=plan.title,
        identity=f"{plan.folder.path.name}/{data.fingerprint}",
        examples=data.train,
        teacher_logits=lesson.teacher_logits,
        trainer=plan.trainer,
        seed=plan.seed,
        checkpoint=plan.checkpoint,
    )
    progress = train(student, objective, training, engine, evaluate)
    return method.finalize(student), progress


def write_results(
    plan: Plan, names: Mapping[str, Any], measured: Measurements, progress: Progress, engine: Engine
) -> None:
    """Write the tables of a finished folder; `metrics.json` is last, because its presence means finished."""
    path = plan.folder.path
    write_layers(path / "layers.csv", measured.layers)
    write_latency(path / "latency.csv", measured.latencies)
    write_csv(path / "history.csv", list(progress.history[0]), progress.history)
    plan.folder.write_metrics(
        {
            **names,
            "seed": plan.seed,
            "epochs": plan.trainer.epochs,
            **measured.figures,
            "train_seconds": progress.seconds,
            "seconds_per_epoch": median(row["seconds"] or 0.0 for row in progress.history),
            **engine.record(),
            "kdx_version": __version__,
        }
    )
    plan.checkpoint.unlink(missing_ok=True)
