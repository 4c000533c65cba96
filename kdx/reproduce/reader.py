"""Reproduced tables, and figures, which are tables with a picture, read from their files alone."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from kdx.analysis.statistics import Answer
from kdx.reproduce.tables import Of
from kdx.runs.identity import changes
from kdx.runs.reader import Damaged, Record, read_record, read_rows, reading

PROVENANCE, TABLE, RUNS, FIGURE = "provenance.json", "table.csv", "runs.csv", "figure.svg"
PAPER_BUDGET = "paper"


class Job(Record):
    """A row of runs.csv: one run, finished or not; the table's figures are in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    row: str = ""
    seed: int | None = None
    run: str = ""
    status: Literal["finished", "failed", "missing", ""] = ""
    reason: str = ""
    command: str = ""


class Configured(Record):
    """A run's entry in provenance.json: its configuration and, in `model_extra`, where it was executed.

    `recorded` is the machine that wrote an earlier table, if the run was taken from that table and not from its folder.
    """

    model_config = ConfigDict(extra="allow")

    row: str = ""
    seed: int | None = None
    of: Of = "student"
    run: str = ""
    status: str = ""
    recorded: dict[str, Any] | None = None
    configuration: dict[str, Any] = Field(default_factory=dict)


class Claim(Record):
    """A claim of the paper with the runs' answer and its test, or the reason why there is none."""

    text: str
    row: str = ""
    answer: Answer
    reason: str = ""
    ours: float | None = None
    against: float | None = None
    margin: float = 0.0
    t: float | None = None
    df: float | None = None
    p: float | None = None


class Provenance(Record):
    """The origin of a table or figure: settings, budget, machine, and the configurations of its runs."""

    title: str
    budget: str
    table: str | None = None
    seeds: Any = None
    rows: str = "*"
    overrides: list[str] = Field(default_factory=list)
    machine: dict[str, Any] = Field(default_factory=dict)
    train_seconds: float | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    runs: list[Configured] = Field(default_factory=list)
    claims: list[Claim] = Field(default_factory=list)


class Cell(Record):
    """A row of table.csv: the estimate of a figure over seeds, beside the published number.

    The other fields follow from the runs: `complete`, whether all runs of the row have finished, so that a missing
    figure does not exist; `asked`, the number of seeds; `without`, the finished seeds that lack the figure.
    """

    row: str
    column: str
    n: int
    mean: float | None = None
    sd: float | None = None
    interval95: float | None = None
    published: str = ""
    difference: float | None = None
    verdict: Literal["better", "equal", "worse", "differs", "one seed", ""] = ""
    runs: str = ""
    complete: bool = True
    asked: int = 0
    without: list[int | None] = Field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """A reproduced table or, with a picture as SVG, figure; `name` is its folder under outputs/paper."""

    name: str
    folder: Path
    provenance: Provenance
    jobs: list[Job]
    cells: list[Cell]
    svg: bytes | None

    @property
    def command(self) -> str:
        """Its name for `kdx reproduce`."""
        return self.provenance.table or self.name.removesuffix(f"-{self.provenance.budget}")

    @property
    def changes(self) -> list[str]:
        """The overrides with which its runs differ from the table's own settings."""
        return [*changes(self.provenance.overrides)]

    @property
    def mark(self) -> str:
        """How its runs differ from the paper's: the budget or other settings; empty if they do not."""
        return self.provenance.budget if self.provenance.budget != PAPER_BUDGET else "changed" if self.changes else ""

    @property
    def is_result(self) -> bool:
        """Whether its runs have the paper's settings, so that its numbers are comparable with the published ones."""
        return not self.mark

    @cached_property
    def configured(self) -> dict[tuple[str, int | None], Configured]:
        """The provenance of each run by row and seed."""
        return {(one.row, one.seed): one for one in self.provenance.runs}

    @property
    def devices(self) -> list[str]:
        """The devices that trained the runs."""
        told = ((one.model_extra or {}).get("device") for one in self.provenance.runs)
        return sorted({str(device) for device in told if device})

    @property
    def finished(self) -> int:
        """The number of finished runs."""
        return sum(job.status == "finished" for job in self.jobs)

    @cached_property
    def columns(self) -> dict[str, str]:
        """The title of each column; its key if the file is from before there were titles."""
        keys = dict.fromkeys(cell.column for cell in self.cells)
        return {key: self.provenance.columns.get(key, key) for key in keys}

    @cached_property
    def rows(self) -> dict[str, list[Cell]]:
        """The cells of each row, in the order of the columns."""
        rows: dict[str, list[Cell]] = {}
        for cell in self.cells:
            rows.setdefault(cell.row, []).append(cell)
        return rows


def value(text: str) -> int | float | str:
    """A cell of a CSV file, converted to a number if it is one."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def is_table(folder: Path) -> bool:
    """Whether the folder holds a table or figure, even a damaged one."""
    return (folder / TABLE).exists()


def read_table(name: str, folder: Path) -> Table:
    """Read a table; raises Damaged if a file is missing or does not fit."""
    path = folder / TABLE
    provenance, jobs = read_record(folder / PROVENANCE, Provenance), read_rows(folder / RUNS, Job)
    cells = [_with_runs(cell, [job for job in jobs if job.row == cell.row]) for cell in read_rows(path, Cell)]
    table = Table(name, folder, provenance, jobs, cells, _picture(folder / FIGURE))
    if {len(row) for row in table.rows.values()} != {len(table.columns)}:
        raise Damaged(path, "it has not a cell for each row and column")
    # Runs that a paper printed are not kdx's runs.
    if {cell.row for cell in cells if cell.runs} - {job.row for job in jobs}:
        raise Damaged(folder / RUNS, f"it has other rows than {TABLE}")
    if {(job.row, job.seed) for job in jobs} != table.configured.keys():
        raise Damaged(folder / RUNS, f"it has other runs than {PROVENANCE}")
    return table


def _with_runs(cell: Cell, jobs: Sequence[Job]) -> Cell:
    finished = [job for job in jobs if job.status == "finished"]
    absent = [job for job in jobs if not (job.model_extra or {}).get(cell.column)]
    without = [job.seed for job in absent if job.status == "finished"] if len(absent) < len(jobs) else []
    told = {"complete": len(finished) == len(jobs), "asked": len(jobs), "without": without}
    return cell.model_copy(update=told)


def _picture(path: Path) -> bytes | None:
    if not path.exists():
        return None
    with reading(path):
        svg = path.read_bytes()
        if not svg.rstrip().endswith(b"</svg>"):
            raise ValueError("it does not end as an SVG does")
    return svg
