"""Finished runs that an earlier table records, perhaps from another machine, if their folders are missing here."""

from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdx.analysis.summary import Content
from kdx.errors import UserError
from kdx.reproduce.figures import Weights
from kdx.reproduce.histograms import first_of_rows, read_histograms
from kdx.reproduce.jobs import Job, JobResult
from kdx.reproduce.reader import Configured, Table, is_table, read_table, value
from kdx.reproduce.reader import Job as Told
from kdx.reproduce.tables import PaperTable
from kdx.runs.reader import Damaged, flat


def read_recorded(
    folder: Path, table: PaperTable, jobs: Sequence[Job], elsewhere: Mapping[str, Content]
) -> dict[int, JobResult]:
    """The jobs, by index, that the table in `folder` lists as finished and that are not finished here.

    A run id is a hash of all that can change a result, so a record of other settings is never taken. Figures that other
    tables record for these runs, `elsewhere`, are added. Raises UserError if the table is damaged, lacks a column that
    was added since, or is a figure without the histograms of its weights.
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
        _, others = elsewhere.get(job.run, ({}, {})) if job.subject == "student" else ({}, {})
        figures = {**others, **_figures(one, more)}
        machine = more.recorded or source.provenance.machine
        found[number] = JobResult(job, "finished", "", figures, more.configuration.get("device"), machine)
    if found:
        _check_columns(folder, table, source.columns, found.values())
        if isinstance(table.figure, Weights):
            _check_histograms(folder, table, [found[number] for number in first_of_rows(jobs) if number in found])
    return found


def _check_histograms(folder: Path, table: PaperTable, found: Collection[JobResult]) -> None:
    try:
        kept = read_histograms(folder)
    except Damaged as damaged:
        raise UserError(f"recorded: {damaged.path} is damaged: {damaged}; allowed: false") from None
    lacking = [each.job.row for each in found if (each.job.row, each.job.run) not in kept]
    if lacking:
        raise UserError(
            f"recorded: {table.name} is drawn from weights, and those of {lacking[0]}, seed 0, are not here;"
            " allowed: false"
        )


def _check_columns(folder: Path, table: PaperTable, told: Container[str], found: Collection[JobResult]) -> None:
    # A column that is new in the table may still be among what is told of every run.
    new = [key for key in table.columns if key not in told]
    lacking = [key for key in new if any(each.figures.get(key) is None for each in found)]
    if lacking:
        raise UserError(f"recorded: the table in {folder} has no column {', '.join(lacking)}; allowed: false")


def recorded_runs(outputs: Path) -> dict[str, Content]:
    """The finished students in all tables of `outputs`, by run id, with the figures of all these tables.

    Raises UserError if a table is damaged.
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
    """The recorded figures of a run, without those that are recorded as absent."""
    told = {**(more.model_extra or {}), **{key: value(text) for key, text in (job.model_extra or {}).items()}}
    return {key: figure for key, figure in told.items() if figure not in (None, "")}
