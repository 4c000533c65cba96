"""Reproduced tables and figures, which are tables with a picture, read from their files alone."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from kdx.identity import changes
from kdx.report.records import Damaged, Record, read_record, read_rows, reading
from kdx.reproduce.tables import Of
from kdx.statistics import Answer

PROVENANCE, TABLE, RUNS, FIGURE = "provenance.json", "table.csv", "runs.csv", "figure.svg"
PAPER_BUDGET = "paper"


class Job(Record):
    """A line of runs.csv: one run, finished or not, and the figures that its table shows as `model_extra`."""

    model_config = ConfigDict(extra="allow")

    row: str = ""
    seed: int | None = None
    run: str = ""
    status: Literal["finished", "failed", "missing", ""] = ""
    reason: str = ""
    command: str = ""


class Configured(Record):
    """What provenance.json adds to a run: where it ran (as `model_extra`) and its configuration.

    `recorded` is the machine that wrote an earlier table, where the run was taken from that and not from its folder.
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
    """A claim of the paper with the answer of the runs and the test behind it, or the reason why there is none."""

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
    """Where a table or figure comes from."""

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
    """A line of table.csv: a figure of a row over its seeds beside the published number.

    The runs tell the rest: `complete`, whether all of the row finished, so that a figure which is absent does not
    exist, `asked`, how many seeds the row has, and `without`, the finished ones that lack what others have.
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
    """A reproduced table or, with a picture as SVG, figure; `name` is its folder below outputs/paper."""

    name: str
    folder: Path
    provenance: Provenance
    jobs: list[Job]
    cells: list[Cell]
    svg: bytes | None

    @property
    def command(self) -> str:
        """The name that `kdx reproduce` knows it by."""
        return self.provenance.table or self.name.removesuffix(f"-{self.provenance.budget}")

    @property
    def changes(self) -> list[str]:
        """The words by which its runs are others than the table's own."""
        return [*changes(self.provenance.overrides)]

    @property
    def mark(self) -> str:
        """What its runs are not the paper's by: the budget, or other settings; empty where they are."""
        return self.provenance.budget if self.provenance.budget != PAPER_BUDGET else "changed" if self.changes else ""

    @property
    def is_result(self) -> bool:
        """Whether its runs are the paper's, so that its numbers can be compared with the published ones."""
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
        """How many of the runs are finished."""
        return sum(job.status == "finished" for job in self.jobs)

    @cached_property
    def columns(self) -> dict[str, str]:
        """The title of each column; its key where the file is older than titles."""
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
    """A cell of a CSV file as a number where it is one."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def is_table(folder: Path) -> bool:
    """Whether the folder holds a table or figure, perhaps a damaged one."""
    return (folder / TABLE).exists()


def read_table(name: str, folder: Path) -> Table:
    """Read a table; Damaged where a file is absent or does not fit."""
    path = folder / TABLE
    provenance, jobs = read_record(folder / PROVENANCE, Provenance), read_rows(folder / RUNS, Job)
    cells = [_with_runs(cell, [job for job in jobs if job.row == cell.row]) for cell in read_rows(path, Cell)]
    table = Table(name, folder, provenance, jobs, cells, _picture(folder / FIGURE))
    if {len(row) for row in table.rows.values()} != {len(table.columns)}:
        raise Damaged(path, "it has not a cell for each row and column")
    # The runs that a paper printed are no runs of ours.
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
