"""What the README shows of the results is what was measured."""

import csv
import json
from collections.abc import Sequence

import pytest
from helpers import ROOT

from kdx.formatting import with_interval

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMPRESSION = ("test_error_percent", "R_s", "memory_compression")
SPEED = ("speedup.masked", "speedup.dense", "speedup.shrunk", "speedup.csr")


def line(row: str, cells: dict[str, dict[str, str]], columns: Sequence[str]) -> str:
    """A row of the README's table from those of table.csv, with the published numbers in brackets."""
    shown = []
    for column in columns:
        cell = cells[column]
        interval = float(cell["interval95"]) if cell["interval95"] else None
        ours = with_interval(float(cell["mean"]), interval) if cell["mean"] else "–"
        shown.append(ours + (f" [{cell['published']}]" if cell["published"] else ""))
    return f"| {row} | {' | '.join(shown)} |"


@pytest.mark.parametrize(
    ("table", "panel", "columns"),
    [("table1", "", COMPRESSION), ("table2", "", COMPRESSION), ("sparsest", "", COMPRESSION), ("fig6", "S1, ", SPEED)],
)
def test_the_tables_are_those_of_the_results(table: str, panel: str, columns: Sequence[str]):
    rows: dict[str, dict[str, dict[str, str]]] = {}
    with (ROOT / "outputs" / "paper" / "vs" / table / "table.csv").open(newline="") as file:
        for cell in csv.DictReader(file):
            rows.setdefault(cell["row"], {})[cell["column"]] = cell
    lines = [line(row, cells, columns) for row, cells in rows.items() if row.startswith(panel)]
    assert lines
    assert [each for each in lines if each not in README] == []


def test_the_pictures_are_there():
    pictures = [text.partition(")")[0] for text in README.split("](")[1:] if text.partition(")")[0].endswith(".png")]
    assert pictures
    assert [path for path in pictures if not (ROOT / path).is_file()] == []


def test_the_tortures_are_those_that_were_measured():
    found = json.loads((ROOT / "outputs" / "benchmarks" / "torture.json").read_text())
    text = (
        f"{found['kill']['kills']} kills, {found['rot']['damages']} damaged results,"
        f" {found['files']['damages']} damaged data files, {found['words']['command_lines']} wrong command lines,"
        f" {found['disk']['refusals']} refusals of a disk and {found['several']['processes']} processes at once,"
        f" {found['several']['killed']} of them killed"
    )
    assert text in " ".join(README.split())
    # Whatever goes wrong is to be told there.
    assert [name for name in found if name != "machine" and found[name]["failures"]] == []
