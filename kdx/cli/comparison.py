"""One row per run, with the settings in which the runs differ."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from kdx import console, formatting
from kdx.analysis.differences import MISSING, differing_keys, setting_text, shortest_names
from kdx.runs.reader import Figures, number, read_figures, read_settings
from kdx.runs.sanity import sanity_warnings

ID_SHOWN = 8
SETTINGS_SHOWN = 4
Field = tuple[Column, Callable[[int], str | Text]]


def print_comparison(runs: Sequence[Path]) -> None:
    """Print one row per finished run on standard output, in the order given; raises UserError if a file is damaged."""
    figures = [read_figures(run) for run in runs]
    settings = [read_settings(run) for run in runs]
    screen = console.console()
    differing = differing_keys(settings)
    labels = shortest_names(differing, {key for run in settings for key in run})
    columns = [_setting_field(labels[key], [run.get(key, MISSING) for run in settings]) for key in differing]
    common, identity = _identity(figures)
    run, method = _name_fields(figures)
    results = _result_fields(figures)

    def together(shown: int) -> Table:
        return _table([run, method, *identity, *columns[:shown], *results], len(runs))

    def apart(shown: int) -> Table:
        return _table([run, method, *identity, *columns[:shown]], len(runs))

    shown = min(len(columns), SETTINGS_SHOWN)
    if console.fits(screen, together(shown)) or not (identity or columns):
        console.show(screen, together(shown), common)
    else:
        # If one table is too wide: settings and figures in two tables with the same first columns.
        while shown > 1 and not console.fits(screen, apart(shown)):
            shown -= 1
        console.show(screen, apart(shown), common)
        console.show(screen, _table([run, method, *results], len(runs)))
    if differing[shown:]:
        screen.print(f"... also different: {', '.join(labels[key] for key in differing[shown:])}")
    screen.print("memory: teacher dense / student CSR bytes. ms: one image, one CPU thread.")
    for one in figures:
        for text in sanity_warnings(one):
            console.warn(screen, f"{one['run_id'][:ID_SHOWN]} {one['method']}: {text}")


def _identity(figures: Sequence[Figures]) -> tuple[str, list[Field]]:
    """A title of what all runs have in common, and a column for each identifying field in which they differ."""
    common, fields = [], []
    for key, kind in (
        ("dataset", console.words),
        ("teacher", console.words),
        ("student", console.words),
        ("seed", console.numbers),
        ("epochs", console.numbers),
    ):
        values = [formatting.ABSENT if one.get(key) is None else str(one[key]) for one in figures]
        if len(set(values)) == 1:
            common.append(f"{key} {values[0]}")
        elif key not in ("dataset", "teacher"):  # These differ in their settings too, and get a column there.
            fields.append(_field(kind(key), values))
    return ", ".join(common), fields


def _name_fields(figures: Sequence[Figures]) -> tuple[Field, Field]:
    run = Column("run", no_wrap=True)
    return _field(run, [one["run_id"][:ID_SHOWN] for one in figures]), _field(
        console.words("method"), [one["method"] for one in figures]
    )


def _result_fields(figures: Sequence[Figures]) -> list[Field]:
    def column(header: str, key: str, text: Callable[[float | None], str]) -> Field:
        return _field(console.numbers(header), [text(number(one, key)) for one in figures])

    sparsity = [
        Text("none", console.WARNING) if number(one, "nonzero_weights") == 0 else formatting.ratio(number(one, "R_s"))
        for one in figures
    ]
    return [
        column("test\nerr %", "test_error_percent", formatting.percent),
        column("val\nerr %", "val_error_percent", formatting.percent),
        _field(console.numbers("R_s"), sparsity),
        column("R_c", "R_c", formatting.ratio),
        column("memory", "memory_compression", formatting.ratio),
        column("dense\nms", "latency_ms", formatting.milliseconds),
        column("CSR\nms", "csr_latency_ms", formatting.milliseconds),
    ]


def _setting_field(label: str, values: Sequence[Any]) -> Field:
    return _field(console.words(label), [setting_text(value) for value in values])


def _field(column: Column, cells: Sequence[str | Text]) -> Field:
    return column, lambda row: cells[row]


def _table(fields: Sequence[Field], rows: int) -> Table:
    # Columns remember their cells, so every table needs columns of its own.
    content = console.table(*(column.copy() for column, _ in fields))
    for row in range(rows):
        content.add_row(*(cell(row) for _, cell in fields))
    return content
