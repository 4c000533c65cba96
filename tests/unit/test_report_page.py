"""`kdx report`: what is read from an outputs folder, and what the page says of it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kdx.cli import main
from kdx.compose import single
from kdx.config import run_id
from kdx.files import write_csv, write_json, write_text
from kdx.report.inference import COLUMNS
from kdx.report.page.found import read_outputs
from kdx.report.page.page import figure_text, with_minus
from kdx.report.page.typed import command_of
from kdx.report.summary import groups_of, write_failures, write_summary
from kdx.reproduce.cells import cells_of, check_claims
from kdx.reproduce.jobs import Done, Order, jobs_of
from kdx.reproduce.results import write_table
from kdx.reproduce.tables import load_table

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


def order(budget: Any = "paper") -> Order:
    return Order(rows="*", seeds=3, budget=budget, overrides=(), train=False)


def write_run(done: Done, figures: dict[str, Any] | None = None) -> Path:
    """The folder of a finished run, as a run leaves it but for its network."""
    folder, config = done.job.folder, done.job.config
    names = {"run_id": folder.path.name, "dataset": config.dataset.name, "method": config.method["name"]}
    folder.write_config(config)
    folder.write_metrics({**names, "student": config.student.name, "seed": done.job.seed, **(figures or done.figures)})
    return folder.path


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A table with a finished, a half-finished and a hostile row; two of its runs; a figure and a sweep."""
    outputs = tmp_path / "outputs"
    whole = load_table("vs/table1")
    names = {"Le-L-ST-SVD": "Le-L-ST-SVD", "Le-L-ST-VBD": "Le-L-ST-VBD", HOSTILE: "IP"}
    rows = {name: whole.rows[source] for name, source in names.items()}
    columns = {name: whole.columns[name] for name in ("test_error_percent", "R_s")}
    claims = [claim for claim in whole.claims if claim.row in rows and claim.than in rows]
    table = whole.model_copy(update={"rows": rows, "columns": columns, "claims": claims, "notes": ["A note."]})
    jobs = jobs_of(table, Order("*", 3, "paper", (f"outputs={outputs}",), train=False))
    svd = [{"test_error_percent": error, "R_s": 30.0, "epochs": 100} for error in (1.6, 1.7, 1.8)]
    ends: list[tuple[Any, str, dict[str, Any]]] = [("finished", "", figures) for figures in svd]
    ends += [("finished", "", {"test_error_percent": 1.25, "R_s": 1027.4, "epochs": 100})]
    ends += [("failed", "the loss is not finite", {}), ("missing", "not run", {})]
    ends += [("missing", "not run", {})] * 3
    done = [Done(job, *end) for job, end in zip(jobs, ends, strict=True)]
    cells = cells_of(table, done)
    for budget, name in (("paper", "table1"), ("smoke", "table1-smoke")):
        folder = outputs / "paper" / "vs" / name
        write_table(folder, table, order(budget), done, cells, check_claims(table, cells))
    runs = [write_run(each) for each in done[:2]]

    figure = outputs / "paper" / "vs" / "figure1"
    write_json(figure / "provenance.json", {"figure": "vs/figure1", "title": "A figure", "budget": "paper", "seeds": 3})
    write_text(figure / "figure.svg", SVG)
    points = [{"x": "-1.5", "error": "2.25", "runs": runs[0].name}, {"x": "12", "error": "", "runs": ""}]
    write_csv(figure / "points.csv", ["x", "error", "runs"], points)
    write_csv(figure / "runs.csv", ["run", "status"], [{"run": run.name, "status": "finished"} for run in runs])

    sweep = outputs / "sweeps" / "my sweep"
    write_summary(sweep / "summary.csv", groups_of(runs))
    write_failures(sweep / "failed.csv", [{"job": 2, "overrides": "seed=2", "reason": "it broke"}])
    return outputs


def page(outputs: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """The page, and what was said on stderr."""
    assert main(["report", str(outputs), *words]) == 0
    out, err = capsys.readouterr()
    return Path(out.strip()).read_text(encoding="utf-8"), err


def test_every_link_leads_somewhere_and_nothing_is_loaded(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, err = page(outputs, capsys)
    assert err == ""
    seen = Seen(text)
    assert len(set(seen.ids)) == len(seen.ids)
    assert {link.removeprefix("#") for link in seen.links} <= set(seen.ids)
    assert seen.loads
    assert all(load.startswith("data:") for load in seen.loads)
    assert "://" not in text
    # Each of the nine runs once, though two tables, a figure and a sweep have them.
    assert sum(name.startswith("run-") for name in seen.ids) == 9
    assert {"paper-vs-table1", "paper-vs-table1-smoke", "paper-vs-figure1", "sweep-my-sweep"} <= set(seen.ids)


def test_a_cell_says_ours_the_published_number_and_the_verdict(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    section = text.split('id="paper-vs-table1"')[1].split("</section>")[0]
    first = json.loads((outputs / "paper/vs/table1/provenance.json").read_text())["runs"][0]["run"]
    cells = re.findall(r"<td class=.number.*?</td>", section, re.DOTALL)
    assert f'href="#run-{first}"' in cells[0]
    assert "1.70 ± 0.25" in cells[0]
    said = Seen(cells[0]).text.split()
    assert said[-3:] == ["1.94", "−0.24", "equal"]
    # 12.43 is printed; one seed says neither better nor worse.
    assert Seen(cells[3]).text.split() == ["1,027", "12.43", "+1,015", "one", "seed"]
    assert 'data-value="1027.4"' in cells[3]
    # Nothing of the hostile row has run, and its cells lead to what would have to.
    assert "missing" in cells[4]
    assert re.search(r'href="#run-\w{12}"', cells[4])
    assert "test error %" in section
    assert "A note." in section
    assert "the loss is not finite" in section
    assert "4 of 9 runs finished, 3 seeds a row" in section


def test_claims_and_counts(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    found = read_outputs(outputs)
    assert [len(table.provenance.claims) for table in found.tables] == [2, 2]
    overview = " ".join(Seen(text.split('id="overview"')[1].split("</section>")[0]).text.split())
    # The smoke table's are not counted.
    assert "claims of the papers 0 hold 0 fail 2 undecided" in overview
    assert "finished runs 4 missing runs 4 failed runs 1" in overview
    assert text.count('<span class="verdict undecided">undecided</span>') == 4
    assert "t = " in text or "not possible" in text


def test_another_budget_is_marked(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    smoke = text.split('id="paper-vs-table1-smoke"')[1].split("</section>")[0]
    paper = text.split('id="paper-vs-table1"')[1].split("</section>")[0]
    assert "budget=smoke: these numbers are not results." in Seen(smoke).text
    assert "not results" not in paper


def test_everything_is_escaped(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert Seen(text).scripts == 1


def test_a_run_has_its_command_configuration_and_figures(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    runs = json.loads((outputs / "paper/vs/table1/provenance.json").read_text())["runs"]
    articles = {part.split('"')[0]: part for part in text.split('<article class="run" id="')[1:]}
    for number, run in enumerate(runs):
        said = Seen(articles[f"run-{run['run']}"]).text
        assert f"seed={run['seed']}" in said.split("Command")[1]
        assert "kdx train dataset=mnist" in said
        assert "name: mlp-1200-1200" in said.split("Configuration")[1]
        assert ("its folder is not here" in said) == (number > 1)
    assert "1.6" in Seen(articles[f"run-{runs[0]['run']}"]).text
    # The other seeds of its row are one step away.
    links = Seen(articles[f"run-{runs[0]['run']}"]).links
    assert {f"#run-{run['run']}" for run in runs[:3]} <= set(links)


def test_the_figure_and_its_points(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    section = text.split('id="paper-vs-figure1"')[1].split("</section>")[0]
    assert 'src="data:image/svg+xml;base64,' in section
    assert 'data-value="-1.5">−1.5<' in section
    assert "A figure" in section


def test_a_sweep_and_its_failures(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    section = text.split('id="sweep-my-sweep"')[1].split("</section>")[0]
    assert "1.65 ± 0.64" in section
    assert "it broke" in section


def test_a_run_that_finished_after_its_table(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    assert "since this was written" not in text
    missing = json.loads((outputs / "paper/vs/table1/provenance.json").read_text())["runs"][5]
    finished = next(outputs.glob("runs/*/*/*/*"))
    later = finished.parent / missing["run"]
    shutil.copytree(finished, later)
    figures = json.loads((later / "metrics.json").read_text())
    write_json(later / "metrics.json", {**figures, "run_id": missing["run"]})
    text, _ = page(outputs, capsys)
    assert "1 of the missing runs has finished since this was written" in Seen(text).text
    assert "kdx reproduce vs/table1 train=false" in text


def test_without_the_run_folders(outputs: Path, capsys: pytest.CaptureFixture[str]):
    """Committed results have none."""
    shutil.rmtree(outputs / "runs")
    text, err = page(outputs, capsys)
    assert err == ""
    seen = Seen(text)
    assert sum(name.startswith("run-") for name in seen.ids) == 9
    assert {link.removeprefix("#") for link in seen.links} <= set(seen.ids)


DAMAGES = {
    "paper/vs/table1/provenance.json": "half",
    "paper/vs/table1/table.csv": "half",
    "paper/vs/table1/runs.csv": "half",
    "paper/vs/figure1/figure.svg": "half",
    "paper/vs/figure1/points.csv": "empty",
    "sweeps/my sweep/summary.csv": "half",
    "sweeps/my sweep/failed.csv": "binary",
    "runs/*/*/*/*/metrics.json": "half",
    "runs/*/*/*/*/config.yaml": "binary",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named_and_the_rest_is_shown(name: str, outputs: Path, capsys: pytest.CaptureFixture[str]):
    path = next(outputs.glob(name))
    content = path.read_bytes()
    damaged = {"half": content[: len(content) * 2 // 3], "empty": b"", "binary": b"\xff\xfe: ["}
    path.write_bytes(damaged[DAMAGES[name]])
    text, err = page(outputs, capsys)
    assert err.count("\n") == 1
    assert err.startswith(f"kdx: damaged files are left out, the page says why: {path}")
    assert f">{path}<" in text
    seen = Seen(text)
    assert "1 damaged or half-written file is left out" in " ".join(seen.text.split())
    assert "paper-vs-table1-smoke" in seen.ids
    assert {link.removeprefix("#") for link in seen.links} <= set(seen.ids)


def test_several_damaged_files_are_one_line(outputs: Path, capsys: pytest.CaptureFixture[str]):
    for path in outputs.rglob("provenance.json"):
        path.write_text("{")
    for path in outputs.rglob("metrics.json"):
        path.write_text("[]")
    _, err = page(outputs, capsys)
    assert err.count("\n") == 1
    assert err.endswith(" and 2 more\n")


def test_a_table_of_an_earlier_version_has_its_keys_as_titles(outputs: Path, capsys: pytest.CaptureFixture[str]):
    path = outputs / "paper/vs/table1/provenance.json"
    content = json.loads(path.read_text())
    for key in ("columns", "notes", "rows"):
        del content[key]
    write_json(path, content)
    text, err = page(outputs, capsys)
    assert err == ""
    assert "test_error_percent" in text.split('id="paper-vs-table1"')[1].split("</thead>")[0]


def bench_rows() -> Iterator[dict[str, Any]]:
    for network, form, runtime in (
        ("teacher", "dense", "torch"),
        ("teacher", "dense", "onnxruntime"),
        ("student", "dense", "torch"),
        ("student", "masked", "torch"),
        ("student", "CSR", "kdx.deploy"),
        ("student", "shrunk", "onnxruntime"),
    ):
        times = {"median_us": 30.5, "p10_us": 29.0, "p90_us": 35.0, "repetitions": 9}
        size = None if form == "masked" else 4321
        yield {
            "network": network,
            "form": form,
            "runtime": runtime,
            "batch": 1,
            "threads": 1,
            **times,
            "file_bytes": size,
        }


def test_timings_are_a_table_and_a_picture(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    assert 'id="inference"' not in text
    run = next(outputs.glob("runs/*/*/*/*"))
    write_csv(run / "bench.csv", COLUMNS, bench_rows())
    write_json(
        run / "bench.json", {"cpu": "a processor", "cores": 2, "date": "2026-01-02T03:04:05", "load_average": 0.25}
    )
    text, err = page(outputs, capsys)
    assert err == ""
    section = text.split('id="inference"')[1].split("</section>")[0]
    assert "a processor, 2 cores" in section
    assert "data:image/svg+xml" in section
    article = text.split(f'<article class="run" id="run-{run.name}"')[1].split("</article>")[0]
    assert "load 0.25, 2026-01-02" in article
    assert "30.50" in article
    assert "4.32 kB" in article
    (run / "bench.csv").write_text("network,form\nteacher,dense\n")
    _, err = page(outputs, capsys)
    assert "bench.csv" in err


def test_hundreds_of_runs(outputs: Path, capsys: pytest.CaptureFixture[str]):
    run = next(outputs.glob("runs/*/*/*/*"))
    for number in range(300):
        shutil.copytree(run, run.parent / f"{number:012x}")
    text, _ = page(outputs, capsys)
    assert len(text.encode()) < 3_000_000


def test_wrong_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDX_OUTPUTS", raising=False)
    (tmp_path / "empty").mkdir()
    makes = "allowed: a folder with results, which kdx train, kdx train -m and kdx reproduce make"
    for words, line in (
        ([], f"report: 'outputs' is not a folder; {makes}"),
        (["empty"], f"report: 'empty' holds no results; {makes}"),
        (["empty", "b"], "report: 'b' is a second folder; allowed: one"),
        (["empty", "fil=x"], "key: 'fil=x' is not known; did you mean 'file'? allowed: file"),
        (["empty", "file=empty"], "file: 'empty' is a folder; allowed: a file"),
        (["--hlep"], "option: '--hlep' is not known; did you mean '--help'? allowed: --help, -h"),
    ):
        assert main(["report", *words]) == 2
        out, err = capsys.readouterr()
        assert (out, err.replace("'fil'", "'fil=x'")) == ("", f"kdx: {line}\n")


def test_where_it_is_written(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    monkeypatch.setenv("KDX_OUTPUTS", str(outputs))
    assert main(["report"]) == 0
    assert capsys.readouterr().out == f"{outputs / 'report.html'}\n"
    there = tmp_path / "new" / "page.html"
    assert main(["report", f"file={there}"]) == 0
    assert there.read_text().startswith("<!doctype html>")
    assert main(["report", "--help"]) == 0
    assert capsys.readouterr().out.split("\n")[1].startswith("usage: kdx report [OUTPUTS]")
    assert main(["--help"]) == 0
    assert "  report [OUTPUTS]  " in capsys.readouterr().out


def test_torch_is_not_imported(outputs: Path):
    program = (
        "import sys; from kdx.cli import main; main(['report', sys.argv[1]]);"
        "print([name for name in ('torch', 'matplotlib', 'hydra') if name in sys.modules])"
    )
    words = [sys.executable, "-c", program, str(outputs)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        "method=kd method.T=2.5 seed=3",
        "dataset=digits student=mlp-500-50 method=paper/st-vbd dataset.train_size=200",
        "teacher=lenet5-caffe teacher.hidden=[40,30] student.hidden=[8] method=noisy teacher2=nin teacher2.seed=4",
        "dataset=cifar10 student=nin student.layers=[C5@96,MP3,C3@96] teacher=resnet56-v2 method=kddp",
        "method=ikd student=refined trainer.patience=3 device.threads=1",
    ],
)
def test_the_command_of_a_run_is_found_again(words: str, tmp_path: Path):
    config = single([*words.split(), f"outputs={tmp_path}"])
    command = command_of(config.model_dump(mode="json"), run_id(config))
    program, train, *typed = shlex.split(command)
    assert (program, train) == ("kdx", "train")
    assert run_id(single(typed)) == run_id(config)
    assert command_of(config.model_dump(mode="json"), "000000000000") == ""


def test_settings_that_no_command_makes(tmp_path: Path):
    content = single(["method=kd"]).model_dump(mode="json")
    wrong = {**content, "method": {"name": "of another day"}}, {**content, "student": {"family": "mlp"}}, {}
    assert [command_of(settings, "000000000000") for settings in wrong] == ["", "", ""]


def test_a_run_alone_has_its_command_too(outputs: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(outputs / "paper")
    run = next(outputs.glob("runs/*/*/*/*"))
    text, _ = page(outputs, capsys)
    article = text.split(f'<article class="run" id="run-{run.name}"')[1].split("</article>")[0]
    words = shlex.split(Seen(article.split('<pre class="wrap">')[1].split("</pre>")[0]).text)
    assert run_id(single(words[2:])) == run.name
    run.rename(run.with_name("000000000000"))
    text, _ = page(outputs, capsys)
    article = text.split('<article class="run" id="run-000000000000"')[1].split("</article>")[0]
    assert "kdx train" not in article
    assert "No command of kdx" in article


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "true"), (1234567, "1,234,567"), (0.123456789, "0.123457"), ("784-500", "784-500")],
)
def test_figures_as_text(value: Any, text: str):
    assert figure_text(value) == text


def test_minus_signs():
    assert with_minus("t = -1.5, 2 - 1, 784-500-10, -x") == "t = −1.5, 2 - 1, 784-500-10, -x"
    assert with_minus("-0.25") == "−0.25"
