"""The runs behind a table: one per row and seed, trained if they are not finished."""

import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from kdx.compose import check_method, single
from kdx.config import Config
from kdx.failure import describe, recorded
from kdx.identity import changes, words_id
from kdx.report.differences import setting_text
from kdx.report.finished import read_settings
from kdx.report.records import read_lines
from kdx.reproduce.budget import BUDGETS, Budget
from kdx.reproduce.tables import Of, PaperTable, Row
from kdx.runs import RunFolder, run_folder, teacher_folder

log = logging.getLogger(__name__)

SMOKE_DATASET = ("dataset=digits", "dataset.validation=100", "dataset.train_size=200")


@dataclass(frozen=True)
class Order:
    """What the user asks of a table: rows, seeds, budget, and overrides for every run.

    `train` says whether missing runs are trained, for rows that match `rows` (a pattern with * and ?); `recorded`
    whether results in the existing table are taken. `launcher` chooses and sets a Hydra launcher, if not empty.
    """

    rows: str
    seeds: int
    budget: Budget
    overrides: tuple[str, ...]
    train: bool
    recorded: bool = False
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
    of: Of
    generation: int | None
    words: tuple[str, ...]
    config: Config
    timed: bool = False

    @property
    def folder(self) -> RunFolder:
        """The folder of its figures: the teacher's for a row that is a teacher, the chain's for a generation."""
        return teacher_folder(self.config) if self.of == "teacher" else run_folder(self.config)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.of == "network" or self.folder.finished

    @property
    def changes_network(self) -> bool:
        """Whether training may change the student's architecture, so that its size is known only afterwards."""
        return self.of == "student" and self.config.method.get("procedure", "once") != "once"

    @property
    def run(self) -> str:
        """The run's id; empty if nothing is trained."""
        return "" if self.of == "network" else self.folder.path.name


@dataclass(frozen=True)
class Done:
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
        usual = single(()).device.model_dump(mode="json")
        own = [f"device.{key}={setting_text(value)}" for key, value in self.device.items() if value != usual.get(key)]
        return f"kdx train {shlex.join([*words, *own])}"


def jobs_of(table: PaperTable, order: Order) -> list[Job]:
    """Every job of the table, validated; teachers and untrained networks have one job, printed runs have none.

    Raises UserError if a job is invalid.
    """
    return [
        job
        for label, row in table.rows.items()
        if row.of != "printed"
        for job in _jobs(table, label, row, order, range(1 if row.of in ("teacher", "network") else order.seeds))
    ]


def run_all(name: str, jobs: Sequence[Job], order: Order, recorded: Mapping[int, Done]) -> list[Done]:
    """Run the unfinished jobs of the table `name`: one by one, on a GPU also together, or by a launcher.

    A failure does not stop the other jobs. `recorded` are jobs, by index, that are not trained because a table has
    their results.
    """
    # Here, because they import torch.
    from kdx.device import choose_device
    from kdx.reproduce.fused import train_together
    from kdx.reproduce.launched import train_launched
    from kdx.reproduce.network import network_figures

    chosen = {number: job for number, job in enumerate(jobs) if order.trains(job.row) and number not in recorded}
    # With a launcher, the jobs may run on another machine's device.
    for job in chosen.values() if not order.launcher else ():
        choose_device(job.config.device)
    _check_data(list(chosen.values()))
    due = list(chosen.values())
    failures = train_launched(due, order.launcher, name) if order.launcher else train_together(due)
    # The seeds of a row share their network.
    networks = {job.row: network_figures(job.config, job.of, job.generation) for job in jobs if job.seed == 0}
    results: dict[int, Done] = {}
    for number, job in chosen.items():
        network = networks.get(job.row, {})
        # Asked once for each job, because all results of a folder are read for it.
        if job.finished:
            results[number] = _done(job, network)
        else:
            log.warning(
                "run %d of %d: %s, seed %d: %s", number + 1, len(jobs), job.row, job.seed, shlex.join(job.words)
            )
            results[number] = _trained(job, network, failures.get(job.run))
    # The others afterwards, because their teacher, say, may have been trained just now.
    for number, job in enumerate(jobs):
        if number not in results:
            network = networks.get(job.row, {})
            absent = recorded.get(number) or _missing(job, network)
            results[number] = _done(job, network) if job.finished else absent
    return [_timed(results[number], order) for number in range(len(jobs))]


def _timed(done: Done, order: Order) -> Done:
    """The result with the speedups of its inference, if the table shows them."""
    job = done.job
    if not job.timed or done.status != "finished" or done.recorded is not None:
        return done
    # Here, because it imports all runtimes.
    from kdx.reproduce.inference import speedups

    # With train=false nothing is timed either.
    found = speedups(job.folder.path, time=order.trains(job.row), budget=order.budget)
    return replace(done, figures=done.figures | found)


def _jobs(table: PaperTable, label: str, row: Row, order: Order, seeds: Iterable[int]) -> list[Job]:
    words = [*table.dataset, *table.common, *row.train, *BUDGETS[order.budget]]
    if order.budget == "smoke":
        papers = [word for word in words if not word.startswith(("dataset=", "dataset."))]
        words = [*SMOKE_DATASET, *papers, *table.smoke, *row.smoke]
    words = _without_repeats([*words, *order.overrides])
    config = single(words)
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


def _check_data(jobs: Sequence[Job]) -> None:
    """Raise UserError if a data set cannot be loaded, before any run starts."""
    from kdx.data import load_data

    settings = {job.config.dataset.model_dump_json(): job.config.dataset for job in jobs if not job.finished}
    for each in settings.values():
        load_data(each)


def _trained(job: Job, network: Mapping[str, Any], failure: Exception | None) -> Done:
    """Train the job, if needed; `failure` is the error if it was trained together with others and failed."""
    try:
        with recorded(job.folder.log_file):
            if failure is not None:
                raise failure
            _train(job)
    except Exception as error:
        return replace(_missing(job, network), status="failed", reason=describe(error))
    return _done(job, network)


def _missing(job: Job, network: Mapping[str, Any]) -> Done:
    from kdx.reproduce.network import with_derived

    return Done(job, "missing", "not run", {} if job.changes_network else with_derived(network))


def _done(job: Job, network: Mapping[str, Any]) -> Done:
    from kdx.reproduce.network import with_derived

    if job.of == "network":
        return Done(job, "finished", "", with_derived(network))
    if job.generation is not None:
        return Done(job, "finished", "", _of_generation(job, job.generation), _device_of(job.folder.path))
    # A teacher stays the network that it was; of a student only these are told by no measurement.
    known = network if job.of == "teacher" else {key: network[key] for key in network if key == "moving_statistics"}
    measured = job.folder.metrics() | _by_layer(job.folder.path) | _at_the_end(job.folder.path)
    told = {key: value for key, value in measured.items() if value is not None}
    return Done(job, "finished", "", with_derived({**known, **told}), _device_of(job.folder.path))


def _train(job: Job) -> None:
    # Here, because it imports torch.
    from kdx.experiment import run, train_teachers

    if job.of == "teacher":
        train_teachers(job.config)
    else:
        run(job.config)


def _device_of(folder: Path) -> dict[str, Any]:
    """The settings of `device` with which a run was executed."""
    settings = read_settings(folder)
    return {key.removeprefix("device."): value for key, value in settings.items() if key.startswith("device.")}


def _by_layer(folder: Path) -> dict[str, float]:
    """`sparsity_percent.LAYER` for every weight matrix."""
    rows = read_lines(folder / "layers.csv")
    return {f"sparsity_percent.{row['layer']}": float(row["sparsity_percent"]) for row in rows}


def _at_the_end(folder: Path) -> dict[str, float]:
    """`last.COLUMN`: the last epoch's values in the history."""
    history = read_lines(folder / "history.csv")
    return {f"last.{key}": float(value) for key, value in history[-1].items() if value} if history else {}


def _of_generation(job: Job, generation: int) -> dict[str, Any]:
    """The figures of an accepted generation of a chain, before or after pruning; empty if the chain is shorter."""
    rows = read_lines(job.folder.path / ("chain.csv" if job.of == "generation" else "pruned.csv"))
    found = [row for row in rows if int(row["generation"]) == generation and row.get("accepted", "yes") == "yes"]
    if not found:
        return {}
    numbers = ("val_error_percent", "test_error_percent", "parameters", "nonzero_weights", "C")
    return {key: float(found[0][key]) for key in numbers if found[0].get(key)}
