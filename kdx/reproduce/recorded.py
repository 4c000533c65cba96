"""The finished runs that a table made earlier, perhaps elsewhere, tells of, where their folders are not at hand."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from kdx.errors import UserError
from kdx.report.page.papers import is_table, read_table, value
from kdx.report.records import Damaged
from kdx.reproduce.jobs import Done, Job
from kdx.reproduce.pictures import Weights
from kdx.reproduce.tables import PaperTable


def read_recorded(folder: Path, table: PaperTable, jobs: Sequence[Job]) -> dict[int, Done]:
    """The jobs, by their number, that the table in `folder` lists as finished and that are not finished here.

    A run id is a hash of all that can change a result, so that a record of other settings is never taken. Raises
    UserError where the table is damaged, has other columns, or is drawn from weights, which no table keeps.
    """
    if not is_table(folder):
        return {}
    try:
        source = read_table(table.name, folder)
    except Damaged as damaged:
        raise UserError(f"recorded: {damaged.path} is damaged: {damaged}; allowed: false") from None
    told = {(one.row, one.seed, one.run): one for one in source.jobs if one.status == "finished" and one.run}
    found = {}
    for number, job in enumerate(jobs):
        one = told.get((job.row, job.seed, job.run))
        if one is None or job.finished:
            continue
        more = source.configured[job.row, job.seed]
        figures = {key: value(text) for key, text in (one.model_extra or {}).items()}
        figures = {**(more.model_extra or {}), **figures}
        found[number] = Done(job, "finished", "", figures, more.recorded or source.provenance.machine)
    if found:
        _check_columns(folder, table, source.columns)
    return found


def _check_columns(folder: Path, table: PaperTable, told: Iterable[str]) -> None:
    if isinstance(table.figure, Weights):
        raise UserError(f"recorded: {table.name} is drawn from weights, which a table does not keep; allowed: false")
    new = [key for key in table.columns if key not in set(told)]
    if new:
        raise UserError(f"recorded: the table in {folder} has no column {', '.join(new)}; allowed: false")
