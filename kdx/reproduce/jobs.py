"""The runs behind a table: one for each row and seed, trained where they are not finished."""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdx.compose import check_method, single
from kdx.config import Config
from kdx.errors import UserError
from kdx.failure import describe, recorded
from kdx.reproduce.tables import PaperTable, Row
from kdx.runs import RunFolder, run_folder, teacher_folder

log = logging.getLogger(__name__)

Budget = Literal["paper", "short", "smoke"]
BUDGETS: dict[Budget, tuple[str, ...]] = {
    "paper": (),
    # Enough to see that rows are ordered plausibly, not to compare with published numbers.
    "short": ("trainer.epochs=10", "teacher.trainer.epochs=10"),
    "smoke": ("trainer.epochs=2", "teacher.trainer.epochs=1", "device.latency_seconds=0", "device.compile=false"),
}
SMOKE_DATASET = ("dataset=digits", "dataset.validation=100", "dataset.train_size=200")


@dataclass(frozen=True)
class Order:
    """What is asked of a table: seeds, budget, words for every run, and whether what is missing is trained."""

    seeds: int
    budget: Budget
    overrides: tuple[str, ...]
    train: bool


@dataclass(frozen=True)
class Job:
    """One run of a row, as a user would type it."""

    row: str
    seed: int
    of: Literal["student", "teacher"]
    words: tuple[str, ...]
    config: Config

    @property
    def folder(self) -> RunFolder:
        """Where its figures are: the teacher's folder for a row that is a teacher."""
        return teacher_folder(self.config) if self.of == "teacher" else run_folder(self.config)


@dataclass(frozen=True)
class Done:
    """How a job ended; `figures` are those of metrics.json and layers.csv, None unless it finished."""

    job: Job
    status: Literal["finished", "failed", "missing"]
    reason: str
    figures: dict[str, Any] | None


def jobs_of(table: PaperTable, order: Order) -> list[Job]:
    """Every job of the table, checked; a teacher has one seed of its own, so one job. UserError where one is wrong."""
    return [
        job
        for label, row in table.rows.items()
        for seed in range(1 if row.of == "teacher" else order.seeds)
        for job in [_job(table, label, row, seed, order)]
    ]


def run_all(jobs: Sequence[Job], order: Order) -> list[Done]:
    """Run what is not finished, one after another; a job that fails is recorded and the others go on."""
    results = []
    for number, job in enumerate(jobs, 1):
        finished = job.folder.finished
        if order.train and not finished:
            log.warning("run %d of %d: %s, seed %d: %s", number, len(jobs), job.row, job.seed, " ".join(job.words))
        results.append(_done(job, order.train and not finished))
    return results


def _job(table: PaperTable, label: str, row: Row, seed: int, order: Order) -> Job:
    smoke = order.budget == "smoke"
    dataset = SMOKE_DATASET if smoke else table.dataset
    last = (*BUDGETS[order.budget], *(table.smoke if smoke else ()), *order.overrides, f"seed={seed}")
    words = _without_repeats([*dataset, *table.common, *row.train, *last])
    config = single(words)
    check_method(config)
    return Job(label, seed, row.of, words, config)


def _without_repeats(words: Sequence[str]) -> tuple[str, ...]:
    """Each key once, where it stood first, with the value that was given last."""
    return tuple({word.partition("=")[0]: word for word in words}.values())


def _done(job: Job, train: bool) -> Done:
    if train:
        try:
            with recorded(job.folder.log_file):
                _train(job)
        except UserError:
            raise
        except Exception as failure:
            return Done(job, "failed", describe(failure), None)
    if not job.folder.finished:
        return Done(job, "missing", "not run", None)
    return Done(job, "finished", "", job.folder.metrics() | _by_layer(job.folder.path))


def _train(job: Job) -> None:
    # Here, because they import torch.
    from kdx.data import load_data
    from kdx.device import prepare_device
    from kdx.experiment import run
    from kdx.teacher import get_teacher

    if job.of == "student":
        run(job.config)
        return
    engine = prepare_device(job.config.device)
    get_teacher(job.config, load_data(job.config.dataset).to(engine.device), engine)


def _by_layer(folder: Path) -> dict[str, float]:
    """`sparsity_percent.LAYER` for every weight matrix."""
    with (folder / "layers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {f"sparsity_percent.{row['layer']}": float(row["sparsity_percent"]) for row in rows}
