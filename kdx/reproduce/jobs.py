"""The jobs behind a table, one for each row and seed, and what is asked of them."""

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from kdx.analysis.differences import setting_text
from kdx.checks import check_method
from kdx.config.compose import compose_config
from kdx.config.schema import Config
from kdx.reproduce.tables import Of, PaperTable, Row
from kdx.runs.folder import RunFolder, run_folder, teacher_folder
from kdx.runs.identity import changes, words_id

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
class Request:
    """What the user asks of a table: rows, seeds, budget, and overrides for every run.

    `train` says whether missing runs are trained, for rows that match `rows` (a pattern with * and ?); `reuse`
    whether results in the existing table are taken. `launcher` chooses and sets a Hydra launcher, if not empty.
    """

    rows: str
    seeds: int
    budget: Budget
    overrides: tuple[str, ...]
    train: bool
    reuse: bool = False
    launcher: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[str, ...]:
        """The overrides that make the runs differ from the table's own."""
        return changes(self.overrides)

    @property
    def suffix(self) -> str:
        """The suffix of the folder's name if the runs are not those of the paper."""
        parts = [
            *([self.budget] if self.budget != "paper" else []),
            *([words_id(self.changes)] if self.changes else []),
        ]
        return "".join(f"-{part}" for part in parts)

    def trains(self, row: str) -> bool:
        """Whether missing runs of a row are trained."""
        return self.train and fnmatchcase(row, self.rows)


@dataclass(frozen=True)
class Job:
    """One run of a row, with its overrides as a user would type them; if `timed`, `kdx bench` times its inference."""

    row: str
    seed: int
    subject: Of
    generation: int | None
    words: tuple[str, ...]
    config: Config
    timed: bool = False

    @property
    def folder(self) -> RunFolder:
        """The folder of its figures: the teacher's for a row that is a teacher, the chain's for a generation."""
        return teacher_folder(self.config) if self.subject == "teacher" else run_folder(self.config)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.subject == "network" or self.folder.finished

    @property
    def changes_network(self) -> bool:
        """Whether training may change the student's architecture, so that its size is known only afterwards."""
        return self.subject == "student" and self.config.method.get("procedure", "once") != "once"

    @property
    def run(self) -> str:
        """The run's id; empty if nothing is trained."""
        return "" if self.subject == "network" else self.folder.path.name


@dataclass(frozen=True)
class JobResult:
    """The result of a job; the figures are measured ones if it finished, else those that need no training.

    `device` are the settings of that group with which the run was executed. `recorded` is the machine that wrote an
    earlier table, if the figures are taken from that table and not from the run's folder.
    """

    job: Job
    status: Literal["finished", "failed", "missing"]
    reason: str
    figures: dict[str, Any]
    device: Mapping[str, Any] | None = None
    recorded: Mapping[str, Any] | None = None

    @property
    def command(self) -> str:
        """The command that makes the run; for a finished run with the device settings it was executed with."""
        if self.device is None:
            return f"kdx train {shlex.join(self.job.words)}"
        words = [word for word in self.job.words if word.partition("=")[0].partition(".")[0] != "device"]
        usual = compose_config(()).device.model_dump(mode="json")
        own = [f"device.{key}={setting_text(value)}" for key, value in self.device.items() if value != usual.get(key)]
        return f"kdx train {shlex.join([*words, *own])}"


def jobs_of(table: PaperTable, order: Request) -> list[Job]:
    """Every job of the table, validated; teachers and untrained networks have one job, printed runs have none.

    Raises UserError if a job is invalid.
    """
    return [
        job
        for label, row in table.rows.items()
        if row.of != "printed"
        for job in _jobs(table, label, row, order, range(1 if row.of in ("teacher", "network") else order.seeds))
    ]


def _jobs(table: PaperTable, label: str, row: Row, order: Request, seeds: Iterable[int]) -> list[Job]:
    words = [*table.dataset, *table.common, *row.train, *BUDGETS[order.budget]]
    if order.budget == "smoke":
        papers = [word for word in words if not word.startswith(("dataset=", "dataset."))]
        words = [*SMOKE_DATASET, *papers, *table.smoke, *row.smoke]
    words = _without_repeats([*words, *order.overrides])
    config = compose_config(words)
    check_method(config)
    timed = row.of == "student" and any(column.startswith("speedup.") for column in table.columns)
    # Composed once, because that takes longer than anything else here.
    first = Job(label, 0, row.of, row.generation, tuple(words), config, timed)
    return [
        replace(first, seed=seed, words=(*words, f"seed={seed}"), config=config.model_copy(update={"seed": seed}))
        for seed in seeds
    ]


def _without_repeats(words: Sequence[str]) -> tuple[str, ...]:
    """The overrides with each key once, at its first place, with its last value."""
    return tuple({word.partition("=")[0]: word for word in words}.values())
