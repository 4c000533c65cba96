"""The files of a reproduced table: runs.csv, table.csv, table.md, table.tex and provenance.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdx.analysis.statistics import Estimate
from kdx.device.machine import describe_machine
from kdx.reproduce.cells import Cell, Checked
from kdx.reproduce.jobs import JobResult, Request
from kdx.reproduce.render import latex, markdown
from kdx.reproduce.tables import PaperTable
from kdx.runs.reader import NOT_RECORDED
from kdx.storage.files import write_csv, write_json, write_text

EXECUTION = (
    *("device", "threads", "precision", "gemm", "execution", "processor", "torch_version", "kdx_version", "kdx_source"),
    *("commit", "finished_at"),
)
"""The columns of runs.csv about how a run was executed."""
NAMES = ("row", "seed", "run", "status", "reason")
FIGURES = ("epochs", "test_error_percent", "val_error_percent", "R_s", "R_c", "memory_compression")
"""The columns of runs.csv besides the table's own, since run folders may be deleted."""


def write_table(
    folder: Path,
    table: PaperTable,
    order: Request,
    done: Sequence[JobResult],
    cells: Sequence[Cell],
    claims: Sequence[Checked],
) -> None:
    """Write all files of the table into `folder`; runs.csv lists every run, finished or not."""
    runs = [_run_row(table, each) for each in done]
    write_csv(folder / "runs.csv", list(runs[0]) if runs else NAMES, runs)
    write_csv(folder / "table.csv", *_cell_rows(cells))
    write_text(folder / "table.md", markdown(table, order, done, cells, claims))
    write_text(folder / "table.tex", latex(table, order, cells))
    write_json(folder / "provenance.json", _provenance(table, order, done, claims))


def _run_row(table: PaperTable, done: JobResult) -> dict[str, Any]:
    figures = done.figures
    return {
        "row": done.job.row,
        "seed": done.job.seed,
        "run": done.job.run,
        "status": done.status,
        "reason": done.reason,
        **{key: figures.get(key) for key in (*FIGURES, *table.columns, "train_seconds")},
        "command": done.command,
    }


def _cell_rows(cells: Sequence[Cell]) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns and rows of table.csv, with the `lacking` seeds if any cell has some."""
    rows = [_cell_row(cell) for cell in cells]
    # A complete table has nothing to say there.
    columns = [key for key in rows[0] if key != "lacking" or any(cell.lacking for cell in cells)]
    return columns, [{key: row[key] for key in columns} for row in rows]


def _cell_row(cell: Cell) -> dict[str, Any]:
    ours = cell.ours
    return {
        "row": cell.row,
        "column": cell.column,
        "n": ours.n if ours else 0,
        "lacking": " ".join(map(str, cell.lacking)),
        "mean": ours and ours.mean,
        "sd": ours and ours.sd,
        "interval95": ours and ours.half_width,
        "published": cell.published,
        "difference": cell.difference,
        "verdict": cell.verdict,
        "runs": " ".join(cell.runs),
    }


def _provenance(
    table: PaperTable, order: Request, done: Sequence[JobResult], claims: Sequence[Checked]
) -> dict[str, Any]:
    return {
        "table": table.name,
        "title": table.title,
        "budget": order.budget,
        "rows": order.rows,
        "seeds": order.seeds,
        "overrides": list(order.overrides),
        "machine": describe_machine(),
        "train_seconds": sum({each.job.run: each.figures.get("train_seconds") or 0.0 for each in done}.values()),
        # Results are read without the table's declaration, which may change after them.
        "columns": {key: column.title for key, column in table.columns.items()},
        "notes": table.notes,
        "runs": [_run(each) for each in done],
        "claims": [_claim(each) for each in claims],
    }


def _run(done: JobResult) -> dict[str, Any]:
    config = done.job.config.model_dump(mode="json", exclude={"outputs", "force"})
    if done.device is not None:
        config["device"] = dict(done.device)
    executed = EXECUTION if done.device is not None else ()
    return {
        "row": done.job.row,
        "seed": done.job.seed,
        "of": done.job.subject,
        "run": done.job.run,
        "status": done.status,
        # For a run recorded in an earlier table, the machine that wrote that table, beside the run's own processor.
        "recorded": done.recorded,
        **{key: done.figures.get(key, NOT_RECORDED) for key in executed},
        "seconds_per_epoch": done.figures.get("seconds_per_epoch"),
        "configuration": config,
    }


def _claim(checked: Checked) -> dict[str, Any]:
    than = checked.than
    return {
        **checked.claim.model_dump(),
        "answer": checked.answer,
        "reason": checked.reason,
        "ours": checked.ours and checked.ours.mean,
        "against": than.mean if isinstance(than, Estimate) else than,
        "t": checked.test.t,
        "df": checked.test.df,
        "p": checked.test.p,
    }
