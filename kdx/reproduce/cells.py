"""Compares the runs with the paper: every cell with its published number, every claim with its test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isclose
from typing import Literal

from kdx import formatting
from kdx.analysis.statistics import Answer, Estimate, TTest, against, answer, direction, welch
from kdx.reproduce.jobs import JobResult
from kdx.reproduce.published import exponent_of
from kdx.reproduce.tables import Claim, Column, PaperTable

Verdict = Literal["better", "equal", "worse", "differs", "one seed", ""]


@dataclass(frozen=True)
class Cell:
    """The estimate of a figure over the seeds of a row, and the published number as text.

    `ours` is None if no run has the figure. `lacking` are the seeds without it if others have it: the others alone
    would be a selection, so there is no verdict. `complete` says that every run of the row has finished, so that a
    missing figure does not exist.
    """

    row: str
    column: str
    ours: Estimate | None
    published: str | None
    verdict: Verdict
    runs: tuple[str, ...]
    complete: bool
    lacking: tuple[int, ...] = ()

    @property
    def difference(self) -> float | None:
        """Our mean minus the published number, unless a seed is lacking."""
        return None if self.lacking else difference_of(self.ours, self.published)

    @property
    def counted(self) -> str:
        """Such as ` (2 of 3)`, to follow our number; empty if no seed is lacking."""
        n = self.ours.n if self.ours else 0
        return formatting.counted(n, n + len(self.lacking))


@dataclass(frozen=True)
class Checked:
    """A claim with its answer and the numbers behind it; `reason` says why it could not be tested."""

    claim: Claim
    answer: Answer
    ours: Estimate | None
    than: Estimate | float | None
    test: TTest
    reason: str = ""


def cells_of(table: PaperTable, done: Sequence[JobResult]) -> list[Cell]:
    """Every cell of the table, row by row."""
    return [_cell(table, done, row, column) for row in table.rows for column in table.columns]


def check_claims(table: PaperTable, cells: Sequence[Cell]) -> list[Checked]:
    """Every claim of the table: it holds or fails if a t test says so (p < 0.05) or none is needed, else is undecided.

    It is untested if there is no run for it, and undecided, without a test, if seeds of a row are lacking.
    """
    by_place = {(cell.row, cell.column): cell for cell in cells}
    return [_checked(claim, table.columns[claim.column], by_place) for claim in table.claims]


def _cell(table: PaperTable, done: Sequence[JobResult], row: str, column: str) -> Cell:
    printed, declared = table.printed(row, column), table.columns[column]
    if column in table.rows[row].unlike:
        declared = declared.model_copy(update={"better": None})
    if table.rows[row].of == "printed":
        values = table.printed_runs(row, column)
        recomputed = Estimate(values) if values else None
        return Cell(row, column, recomputed, printed, verdict_of(recomputed, printed, declared), (), True)
    behind = [each for each in done if each.job.row == row]
    found = [each for each in behind if each.figures.get(column) is not None]
    lacking = tuple(each.job.seed for each in behind if each.figures.get(column) is None) if found else ()
    ours = Estimate(tuple(float(each.figures[column]) for each in found)) if found else None
    verdict = "" if lacking else verdict_of(ours, printed, declared)
    runs = tuple(each.job.run for each in found if each.job.run)
    complete = all(each.status == "finished" for each in behind)
    return Cell(row, column, ours, printed, verdict, runs, complete, lacking)


def verdict_of(ours: Estimate | None, printed: str | None, column: Column) -> Verdict:
    """How ours compares with the published number: equal if within our interval or the published number's rounding.

    With one seed there is no interval, so neither better nor worse is said, unless the column has no direction or is
    exact.
    """
    difference = difference_of(ours, printed)
    if ours is None or printed is None or difference is None:
        return ""
    if abs(difference) <= max(ours.half_width or 0.0, _rounding(printed)):
        return "equal"
    if column.better is None:
        return "differs"
    if ours.half_width is None and not column.exact:
        return "one seed"
    return "better" if (difference < 0) == (column.better == "lower") else "worse"


def difference_of(ours: Estimate | None, printed: str | None) -> float | None:
    """Our mean minus the published number, if there are both."""
    if ours is None or printed is None:
        return None
    mean, published = ours.mean, float(printed)
    # The mean of 0.95, 0.97 and 0.99 is 0.97 but for the rounding of binary numbers.
    return 0.0 if isclose(mean, published, rel_tol=1e-12) else mean - published


def _rounding(printed: str) -> float:
    """Half a unit of the last printed digit: 1.88 stands for 1.875 to 1.885."""
    return 0.5 * 10.0 ** exponent_of(Decimal(printed))


def _checked(claim: Claim, column: Column, by_place: Mapping[tuple[str, str], Cell]) -> Checked:
    cells = [by_place[row, claim.column] for row in (claim.row, claim.than) if isinstance(row, str)]
    first, than = cells[0].ours, cells[1].ours if isinstance(claim.than, str) else claim.than
    if first is None or than is None:
        return Checked(claim, "untested", first, than, TTest(None, None, None))
    if reason := "; ".join(_lack(cell) for cell in cells if cell.lacking):
        return Checked(claim, "undecided", first, than, TTest(None, None, None), reason)
    if isinstance(than, Estimate):
        limit = Estimate(tuple(value + claim.margin for value in than.values))
        number = limit.mean
    else:
        limit, number = None, than + claim.margin
    difference = first.mean - number
    if column.exact:
        return Checked(claim, direction(difference, claim.relation), first, than, TTest(None, None, None))
    # A teacher is one network: the runs are compared with its number.
    test = welch(first, limit) if limit and limit.n > 1 else against(first, number)
    return Checked(claim, answer(difference, claim.relation, test), first, than, test)


def _lack(cell: Cell) -> str:
    return f"{cell.row} lacks seed{'s' if len(cell.lacking) > 1 else ''} {', '.join(map(str, cell.lacking))}"
