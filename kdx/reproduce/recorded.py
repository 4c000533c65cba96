"""The finished runs that a table made earlier, perhaps elsewhere, tells of, where their folders are not at hand."""

from collections.abc import Collection, Container, Sequence
from pathlib import Path
from typing import Any

from kdx.errors import UserError
from kdx.report.finished import flat
from kdx.report.page.papers import Configured, Table, is_table, read_table, value
from kdx.report.page.papers import Job as Told
from kdx.report.records import Damaged
from kdx.report.summary import Content
from kdx.reproduce.jobs import Done, Job
from kdx.reproduce.pictures import Weights
from kdx.reproduce.tables import PaperTable


def read_recorded(folder: Path, table: PaperTable, jobs: Sequence[Job]) -> dict[int, Done]:
    """The jobs, by their number, that the table in `folder` lists as finished and that are not finished here.

    A run id is a hash of all that can change a result, so that a record of other settings is never taken. Raises
    UserError where the table is damaged, knows nothing of a column that was added since, or is drawn from weights,
    which no table keeps.
    """
    if not is_table(folder):
        return {}
    source = _read(table.name, folder)
    told = {(one.row, one.seed, one.run): one for one in source.jobs if one.status == "finished" and one.run}
    found = {}
    for number, job in enumerate(jobs):
        one = told.get((job.row, job.seed, job.run))
        if one is None or job.finished:
            continue
        more = source.configured[job.row, job.seed]
        found[number] = Done(job, "finished", "", _figures(one, more), more.recorded or source.provenance.machine)
    if found:
        _check_columns(folder, table, source.columns, found.values())
    return found


def _check_columns(folder: Path, table: PaperTable, told: Container[str], found: Collection[Done]) -> None:
    if isinstance(table.figure, Weights):
        raise UserError(f"recorded: {table.name} is drawn from weights, which a table does not keep; allowed: false")
    # A column that is new in the table may still be among what is told of every run.
    new = [key for key in table.columns if key not in told]
    lacking = [key for key in new if any(each.figures.get(key) is None for each in found)]
    if lacking:
        raise UserError(f"recorded: the table in {folder} has no column {', '.join(lacking)}; allowed: false")


def told_runs(outputs: Path) -> dict[str, Content]:
    """The finished students of all tables in `outputs`, by run id; a run has the figures of all tables that tell of it.

    Raises UserError where a table is damaged.
    """
    found: dict[str, Content] = {}
    for folder in sorted(path for path in (outputs / "paper").glob("*/*") if is_table(path)):
        source = _read(folder.relative_to(outputs / "paper").as_posix(), folder)
        for job in source.jobs:
            more = source.configured[job.row, job.seed]
            if job.status != "finished" or more.of != "student":
                continue
            settings = flat(more.configuration)
            names = {key: settings.get(f"{key}.name") for key in ("dataset", "teacher", "student", "method")}
            _, known = found.get(job.run, (settings, {}))
            figures = {**known, **_figures(job, more), **names, "run_id": job.run, "seed": job.seed}
            found[job.run] = settings, figures
    return found


def _read(name: str, folder: Path) -> Table:
    try:
        return read_table(name, folder)
    except Damaged as damaged:
        raise UserError(f"recorded: {damaged.path} is damaged: {damaged}; allowed: false") from None


def _figures(job: Told, more: Configured) -> dict[str, Any]:
    return {**(more.model_extra or {}), **{key: value(text) for key, text in (job.model_extra or {}).items()}}
