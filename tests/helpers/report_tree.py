"""An outputs folder for the tests of kdx report, written as kdx writes it, and the page as its reader sees it."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from helpers.excerpt import ORDER, only
from kdx.analysis.summary import groups_of, write_failures, write_summary
from kdx.cli.main import main
from kdx.reproduce.cells import cells_of, check_claims
from kdx.reproduce.jobs import JobResult, Request, jobs_of
from kdx.reproduce.tables import load_table
from kdx.reproduce.writer import write_table
from kdx.runs.reader import flat
from kdx.storage.files import write_text

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="4"/></svg>\n'
HOSTILE = "<script>alert('1')</script> & \"more\""


class Seen(HTMLParser):
    """The ids, links and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.scripts += tag == "script"
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if tag == "a" else []
        self.loads += [given[key] or "" for key in ("src", "srcset", "href") if key in given and tag != "a"]

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def write_run(done: JobResult, figures: dict[str, Any] | None = None) -> Path:
    """The folder of a finished run, as a run leaves it but for its network."""
    folder, config = done.job.folder, done.job.config
    names = {"run_id": folder.path.name, "dataset": config.dataset.name, "method": config.method["name"]}
    folder.write_config(config)
    folder.write_metrics({**names, "student": config.student.name, "seed": done.job.seed, **(figures or done.figures)})
    return folder.path


def outputs_in(tmp_path: Path) -> Path:
    """A table with a finished, a half-finished and a hostile row; two of its runs; a figure and a sweep."""
    outputs = tmp_path / "outputs"
    whole = load_table("vs/table1")
    names = {"Le-L-ST-SVD": "Le-L-ST-SVD", "Le-L-ST-VBD": "Le-L-ST-VBD", HOSTILE: "IP"}
    rows = {name: whole.rows[source] for name, source in names.items()}
    columns = {name: whole.columns[name] for name in ("test_error_percent", "R_s")}
    claims = [claim for claim in whole.claims if claim.row in rows and claim.than in rows]
    table = whole.model_copy(update={"rows": rows, "columns": columns, "claims": claims, "notes": ["A note."]})
    jobs = jobs_of(table, Request("*", 3, "paper", (f"outputs={outputs}",), train=False))
    svd = [{"test_error_percent": error, "R_s": 30.0, "epochs": 100} for error in (1.6, 1.7, 1.8)]
    ends: list[tuple[Any, str, dict[str, Any]]] = [("finished", "", figures) for figures in svd]
    ends += [("finished", "", {"test_error_percent": 1.25, "R_s": 1027.4, "epochs": 100})]
    ends += [("failed", "the loss is not finite", {}), ("missing", "not run", {})]
    ends += [("missing", "not run", {})] * 3
    done = [JobResult(job, *end) for job, end in zip(jobs, ends, strict=True)]
    cells = cells_of(table, done)
    for budget, name in (("paper", "table1"), ("smoke", "table1-smoke")):
        folder = outputs / "paper" / "vs" / name
        write_table(folder, table, replace(ORDER, budget=budget), done, cells, check_claims(table, cells))
    runs = [write_run(each) for each in done[:2]]

    figure = outputs / "paper" / "vs" / "figure1"
    drawn = only(table, "*-SVD").model_copy(update={"title": "A figure"})
    write_table(figure, drawn, ORDER, done[:3], cells_of(drawn, done[:3]), [])
    write_text(figure / "figure.svg", SVG)

    printed = only(load_table("kddp/table5"), "*printed runs")
    cells = cells_of(printed, [])
    write_table(outputs / "paper" / "kddp" / "table5", printed, ORDER, [], cells, check_claims(printed, cells))

    sweep = outputs / "sweeps" / "my sweep"
    write_summary(sweep / "summary.csv", groups_of([*runs, flat(done[2].job.config.model_dump(mode="json"))]))
    write_failures(sweep / "failed.csv", [{"job": 2, "overrides": "seed=2", "reason": "it broke"}])
    return outputs


def page(outputs: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """The page, and what was said on stderr."""
    assert main(["report", str(outputs), *words]) == 0
    out, err = capsys.readouterr()
    return Path(out.strip()).read_text(encoding="utf-8"), err
