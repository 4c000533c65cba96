"""Renders the page with the template beside this file."""

import base64
import hashlib
import re
from datetime import datetime
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import kdx
from kdx import formatting
from kdx.analysis.palette import COLOURS
from kdx.report.outputs import Found
from kdx.report.overview import answers, machine_text, overview_of
from kdx.report.tradeoff import pictures
from kdx.reproduce.reader import Cell, Table

MINUS = "−"
ABSENT = "–"

# The columns of the list of runs: key of metrics.json, title, how it is written.
RUN_COLUMNS = (
    ("test_error_percent", "test error %", formatting.percent),
    ("val_error_percent", "validation error %", formatting.percent),
    ("sparsity_percent", "sparsity %", formatting.percent),
    ("R_s", "R_s", formatting.ratio),
    ("R_c", "R_c", formatting.ratio),
    ("memory_compression", "memory compression", formatting.ratio),
    ("latency_ms", "latency ms", formatting.milliseconds),
    ("train_seconds", "training", formatting.duration),
)


def page_of(found: Found, date: datetime) -> str:
    """The whole page as HTML, which refers to no other file or address."""
    loader = PackageLoader("kdx.report", "template")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "anchor": anchor,
        "data_uri": data_uri,
        "duration": formatting.duration,
        "figure": figure_text,
        "href": lambda name: f"#{quote(name)}",
        "machine": machine_text,
        "minus": with_minus,
        "size": formatting.size,
    }
    style, script = (loader.get_source(environment, name)[0] for name in ("style.css", "page.js"))
    return environment.get_template("page.html").render(
        found=found,
        overview=overview_of(found),
        pictures=pictures(found.runs.values()),
        run_columns=RUN_COLUMNS,
        titles={key: title for key, title, _ in RUN_COLUMNS},
        answers=answers,
        cell_link=cell_link,
        late=late,
        formatting=formatting,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        absent=ABSENT,
        colours=COLOURS,
        date=date,
        version=kdx.__version__,
    )


def anchor(name: str) -> str:
    """The name of a table, figure or sweep as an HTML anchor."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def cell_link(found: Found, table: Table, cell: Cell) -> str | None:
    """The anchor of the first run behind a number, or of the first that it waits for; None for printed runs."""
    if cell.runs:
        return f"run-{cell.runs.split()[0]}"
    return next((use.runs[0][1] for use in found.uses[table.name] if use.row == cell.row), None)


def late(found: Found, source: Table) -> int:
    """How many runs that a table or figure lacks have finished since it was written."""
    anchors = {f"run-{job.run}" for job in source.jobs if job.run and job.status != "finished"}
    return sum(found.runs[name].status == "finished" for name in anchors)


def figure_text(value: Any) -> str:
    """A figure as text: six significant digits, whole numbers with thousands separators."""
    match value:
        case None | "":
            return ABSENT
        case bool():
            return str(value).lower()
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.6g}"
        case _:
            return str(value)


def with_minus(text: str) -> str:
    """The text with hyphens of negative numbers replaced by minus signs."""
    return re.sub(r"(?<![\w.-])-(?=[\d.])", MINUS, text)


def data_uri(svg: bytes) -> str:
    """An SVG picture as a data URI; as an image it can neither run nor load anything."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
