"""What is committed in outputs/paper is what today's tables declare, and its files tell the same."""

import json
from pathlib import Path

import pytest
from helpers import ROOT

from kdx.formatting import with_interval
from kdx.reproduce.tables import load_table, table_names
from kdx.runs.reader import read_lines
from kdx.storage.checksums import flaw

OUTPUTS = ROOT / "outputs" / "paper"
FOLDERS = sorted(file.parent for file in OUTPUTS.glob("*/*/provenance.json"))
"""Of every table and figure, perhaps of a smaller budget than the paper's."""


def name_of(folder: Path) -> str:
    return folder.relative_to(OUTPUTS).as_posix()


def test_every_table_is_there():
    assert set(table_names()) <= set(map(name_of, FOLDERS))


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_it_is_what_the_table_declares(folder: Path):
    """Titles, notes and claims; that a change of a table's file is followed by its results."""
    told = json.loads((folder / "provenance.json").read_text())
    table = load_table(told["table"])
    assert told["title"] == table.title
    assert told["notes"] == table.notes
    assert told["columns"] == {key: column.title for key, column in table.columns.items()}
    declared = [claim.model_dump() for claim in table.claims]
    assert [{key: claim[key] for key in each} for claim, each in zip(told["claims"], declared, strict=True)] == declared
    text = (folder / "table.md").read_text()
    assert all(note in text for note in table.notes)


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_its_files_tell_the_same(folder: Path):
    """Every mean follows from the runs, every line of the Markdown from the cells."""
    assert not any(flaw(file) for file in folder.iterdir())
    runs, cells = read_lines(folder / "runs.csv"), read_lines(folder / "table.csv")
    text, tex = (folder / "table.md").read_text(), (folder / "table.tex").read_text()
    jobs = json.loads((folder / "provenance.json").read_text())["runs"]
    assert [(run["row"], run["run"], run["status"]) for run in runs] == [
        (job["row"], job["run"], job["status"]) for job in jobs
    ]
    of_runs = {run["row"] for run in runs}
    for cell in (cell for cell in cells if cell["row"] in of_runs):
        values = [float(run[cell["column"]]) for run in runs if run["row"] == cell["row"] and run[cell["column"]]]
        assert int(cell["n"]) in (0, len(values))
        if cell["mean"]:
            assert float(cell["mean"]) == pytest.approx(sum(values) / len(values), rel=1e-12), cell
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    for cell in cells:
        assert cell["published"] in lines[cell["row"]]
        assert cell["published"] in tex
        if cell["mean"]:
            ours = with_interval(float(cell["mean"]), float(cell["interval95"]) if cell["interval95"] else None)
            assert ours in lines[cell["row"]]
