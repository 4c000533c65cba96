"""`kdx report`: what is read from an outputs folder, and what the page says of it."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.report_tree import Seen, outputs_in, page

from kdx.bench.results import COLUMNS
from kdx.report.html import figure_text, with_minus
from kdx.report.outputs import read_outputs
from kdx.runs.folder import RunFolder
from kdx.storage.files import sha256_of, write_csv, write_json


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return outputs_in(tmp_path)


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
    # 12.43 is printed; one seed of three is not judged.
    assert Seen(cells[3]).text.split() == ["1,027", "(1", "of", "3)", "12.43"]
    assert 'data-value="1027.4"' in cells[3]
    # Nothing of the hostile row has run, and its cells lead to what would have to.
    assert "missing" in cells[4]
    assert re.search(r'href="#run-\w{12}"', cells[4])
    assert "test error %" in section
    assert "A note." in section
    assert "the loss is not finite" in section
    assert "4 of 9 runs finished, 3 seeds a row" in section


def test_a_figure_that_one_seed_lacks_is_named(outputs: Path, capsys: pytest.CaptureFixture[str]):
    folder = outputs / "paper" / "vs" / "figure1"
    text, _ = page(outputs, capsys)
    assert "missing figures" not in text
    files = [(folder / name).read_text().splitlines() for name in ("runs.csv", "table.csv")]
    runs, cells = (list(csv.DictReader(lines)) for lines in files)
    runs[2]["R_s"] = ""
    cells[1] |= dict.fromkeys(("mean", "sd", "interval95", "difference", "verdict"), "") | {"n": 0}
    write_csv(folder / "runs.csv", list(runs[0]), runs)
    write_csv(folder / "table.csv", list(cells[0]), cells)
    text, err = page(outputs, capsys)
    assert err == ""
    section = Seen(text.split('id="paper-vs-figure1"')[1].split("</section>")[0]).text
    assert "Missing and failed runs, missing figures (1)" in " ".join(section.split())
    assert "Le-L-ST-SVD, seed 2: it has no R_s" in " ".join(section.split())


def test_claims_and_counts(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    found = read_outputs(outputs)
    assert [len(table.provenance.claims) for table in found.tables] == [2, 0, 2, 2]
    overview = " ".join(Seen(text.split('id="overview"')[1].split("</section>")[0]).text.split())
    # The smoke table's are not counted, nor those about what the paper prints of single runs.
    assert "claims of the papers 0 hold 0 fail 2 undecided 0 untested" in overview
    assert text.count("Le-L-ST-VBD lacks seeds 1, 2") == 4
    assert "finished runs 4 missing runs 4 failed runs 1" in overview
    assert text.count('<span class="verdict undecided">undecided</span>') == 4


def test_another_budget_is_marked(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    smoke = text.split('id="paper-vs-table1-smoke"')[1].split("</section>")[0]
    paper = text.split('id="paper-vs-table1"')[1].split("</section>")[0]
    assert "budget=smoke: these numbers are not results." in Seen(smoke).text
    assert "not results" not in paper


def test_other_settings_are_marked_and_not_counted(outputs: Path, capsys: pytest.CaptureFixture[str]):
    file = outputs / "paper" / "vs" / "table1" / "provenance.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "overrides": ["device=cpu", "trainer.epochs=5"]}))
    text, _ = page(outputs, capsys)
    changed = Seen(text.split('id="paper-vs-table1"')[1].split("</section>")[0]).text
    assert "Every run with trainer.epochs=5 : these are not the settings of this table" in " ".join(changed.split())
    overview = " ".join(Seen(text.split('id="overview"')[1].split("</section>")[0]).text.split())
    assert "Other settings: 1 table or figure was made with settings that are not the table's own" in overview
    assert "claims of the papers 0 hold 0 fail 0 undecided 0 untested" in overview


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


def test_a_run_of_an_earlier_table_names_its_machine(outputs: Path, capsys: pytest.CaptureFixture[str]):
    file = outputs / "paper/vs/table1/provenance.json"
    provenance = json.loads(file.read_text())
    run = provenance["runs"][2]
    run["recorded"] = {"cpu": "an abacus", "cores": 10, "date": "2026-01-02T03:04:05+00:00"}
    file.write_text(json.dumps(provenance))
    text, _ = page(outputs, capsys)
    said = Seen(text.split(f'id="run-{run["run"]}"')[1].split("</article>")[0]).text
    assert "so this is what the tables tell of it: an abacus, 10 cores, 2026-01-02" in said
    # It is no figure.
    assert "recorded" not in said


def test_the_figure_and_its_numbers(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    section = text.split('id="paper-vs-figure1"')[1].split("</section>")[0]
    assert 'src="data:image/svg+xml;base64,' in section
    assert "1.70 ± 0.25" in section
    assert "A figure" in section
    assert 'src="data:' not in text.split('id="paper-vs-table1"')[1].split("</section>")[0]


def test_the_runs_that_a_paper_printed_have_no_link(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    section = text.split('id="paper-kddp-table5"')[1].split("</section>")[0]
    assert "17.97 ± 0.19" in section
    assert "t = −9.46, df 16.7, p = 4." in section
    assert Seen(section).links == []


def test_a_sweep_and_its_failures(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    section = text.split('id="sweep-my-sweep"')[1].split("</section>")[0]
    assert "1.65 ± 0.64" in section
    assert "it broke" in section
    # Of the third seed there is no run.
    assert "2 of 3 lost 2" in " ".join(Seen(section).text.split())
    # Earlier versions did not tell of it.
    path = outputs / "sweeps" / "my sweep" / "summary.csv"
    (line,) = csv.DictReader(path.read_text().splitlines())
    assert line.pop("lacking") == "2"
    write_csv(path, list(line), [line])
    text, err = page(outputs, capsys)
    assert (err, "1.65 ± 0.64" in text) == ("", True)
    assert "2 of 3" not in text.split('id="sweep-my-sweep"')[1].split("</section>")[0]


def test_a_run_that_finished_after_its_table(outputs: Path, capsys: pytest.CaptureFixture[str]):
    text, _ = page(outputs, capsys)
    assert "since this was written" not in text
    missing = json.loads((outputs / "paper/vs/table1/provenance.json").read_text())["runs"][5]
    finished = next(outputs.glob("runs/*/*/*/*"))
    later = finished.parent / missing["run"]
    shutil.copytree(finished, later)
    figures = json.loads((later / "metrics.json").read_text())
    RunFolder(later).write_metrics({**figures, "run_id": missing["run"]})
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
    # Of two threads there is a table, and no picture, which is of one.
    write_csv(run / "bench.csv", COLUMNS, [row | {"threads": 2} for row in bench_rows()])
    text, err = page(outputs, capsys)
    assert (err, "Inference, as kdx bench measured it" in text, 'id="inference"' in text) == ("", True, False)
    (run / "bench.csv").write_text("network,form\nteacher,dense\n")
    _, err = page(outputs, capsys)
    assert "bench.csv" in err


def test_timings_that_were_changed_are_not_shown(outputs: Path, capsys: pytest.CaptureFixture[str]):
    run = next(outputs.glob("runs/*/*/*/*"))
    write_csv(run / "bench.csv", COLUMNS, bench_rows())
    write_json(run / "bench.json", {"cpu": "a processor", "sha256": sha256_of(run / "bench.csv")})
    text, err = page(outputs, capsys)
    assert (err, "30.50" in text) == ("", True)
    (run / "bench.csv").write_text((run / "bench.csv").read_text().replace("30.5", "0.5"))
    text, err = page(outputs, capsys)
    assert err == f"kdx: damaged files are left out, the page says why: {run / 'bench.csv'}\n"
    assert "its content is not what was written" in text
    assert 'id="inference"' not in text


def test_hundreds_of_runs(outputs: Path, capsys: pytest.CaptureFixture[str]):
    run = next(outputs.glob("runs/*/*/*/*"))
    for number in range(300):
        shutil.copytree(run, run.parent / f"{number:012x}")
    text, _ = page(outputs, capsys)
    assert len(text.encode()) < 3_000_000


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "true"), (1234567, "1,234,567"), (0.123456789, "0.123457"), ("784-500", "784-500")],
)
def test_figures_as_text(value: Any, text: str):
    assert figure_text(value) == text


def test_minus_signs():
    assert with_minus("t = -1.5, 2 - 1, 784-500-10, -x") == "t = −1.5, 2 - 1, 784-500-10, -x"
    assert with_minus("-0.25") == "−0.25"
