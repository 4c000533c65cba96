"""Cells, claims and files of a reproduced table, from made-up runs."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.excerpt import ORDER

from kdx.analysis.statistics import Estimate, welch
from kdx.config.compose import compose_config
from kdx.errors import UserError
from kdx.reproduce.cells import Cell, cells_of, check_claims, verdict_of
from kdx.reproduce.figures import Weights
from kdx.reproduce.histograms import Histogram, write_histograms
from kdx.reproduce.jobs import Job, JobResult, jobs_of
from kdx.reproduce.render import latex, markdown
from kdx.reproduce.reuse import read_recorded, recorded_runs
from kdx.reproduce.tables import Claim, Column, PaperTable, Row, load_table
from kdx.reproduce.writer import write_table
from kdx.storage.checksums import seal, unseal


def column(better: Any = "lower") -> Column:
    return Column(title="error", better=better, published=None)


@pytest.mark.parametrize(
    ("values", "printed", "better", "expected"),
    [
        # sd 0.1 of three: the interval is 0.2484 to both sides.
        ((1.4, 1.5, 1.6), "1.88", "lower", "better"),
        ((1.4, 1.5, 1.6), "1.88", "higher", "worse"),
        ((1.4, 1.5, 1.6), "1.74", "lower", "equal"),
        ((1.4, 1.5, 1.6), "1.76", "lower", "better"),
        ((2.1, 2.1, 2.1), "1.88", "lower", "worse"),
        # Equal when rounded as printed: 8.998 is printed as 9, 8.4 is not.
        ((8.998, 8.998), "9", "higher", "equal"),
        ((8.4, 8.4), "9", "higher", "worse"),
        ((1.5,), "1.88", "lower", "one seed"),
        ((1.5,), "1.88", None, "differs"),
        ((1.884,), "1.88", "lower", "equal"),
        ((1.5, 1.6), None, "lower", ""),
        (None, "1.88", "lower", ""),
    ],
)
def test_verdicts(values: tuple[float, ...] | None, printed: str | None, better: Any, expected: str):
    assert verdict_of(values and Estimate(values), printed, column(better)) == expected


def test_a_command_tells_of_the_run_and_not_of_the_order(done: list[JobResult]):
    words = ("method=kd", "device.precision=bf16", "device=cpu")
    asked = replace(done[0], job=replace(done[0].job, words=words))
    assert asked.command == "kdx train method=kd device.precision=bf16 device=cpu"
    usual = compose_config(()).device.model_dump(mode="json")
    assert replace(asked, device=usual).command == "kdx train method=kd"
    executed = {**usual, "threads": 1, "compile": True}
    assert replace(asked, device=executed).command == "kdx train method=kd device.threads=1 device.compile=true"


def test_how_runs_were_executed_is_told_with_the_table(table: PaperTable, done: list[JobResult]):
    device = compose_config(()).device.model_dump(mode="json")
    facts = {"device": "cpu", "precision": "fp32", "execution": "eager"}
    finished = [each for each in done if each.status == "finished"]
    told = [
        replace(each, device=device, figures=each.figures | facts | {"threads": 1 + (number == 0)})
        for number, each in enumerate(finished)
    ]
    text = markdown(table, ORDER, told, cells_of(table, told), [])
    many = len(told) - 1
    line = f"{many} on cpu, 1 thread, fp32, eager; 1 on cpu, 2 threads, fp32, eager."
    assert f"Runs as they were executed: {line}" in text


def test_what_follows_from_the_network_needs_no_seeds(table: PaperTable, done: list[JobResult]):
    exact = column("higher").model_copy(update={"exact": True})
    assert verdict_of(Estimate((3.9,)), "2", exact) == "better"
    assert verdict_of(Estimate((1.9,)), "2.2", exact) == "worse"
    table = table.model_copy(update={"columns": {**table.columns, "R_s": exact}})
    complete = done[:4]
    cells = cells_of(table, complete)
    sparser, *_ = check_claims(table, cells)
    # 27 against 30.
    assert (sparser.answer, sparser.test.p) == ("fails", None)
    assert "| **fails** | 27.00 | 30.00 ± 0.00 | exact |" in markdown(table, ORDER, complete, cells, [sparser])


@pytest.fixture
def table() -> PaperTable:
    """Two rows and two columns of the Variational Student's table 1."""
    whole = load_table("vs/table1")
    rows: dict[str, Row] = {name: whole.rows[name] for name in ("Le-L-ST-SVD", "Le-L-ST-VBD")}
    columns = {name: whole.columns[name] for name in ("test_error_percent", "R_s")}
    claims = [
        *(claim for claim in whole.claims if claim.row in rows and claim.than in rows),
        Claim(text="under 2 %", column="test_error_percent", row="Le-L-ST-VBD", relation="lower", than=2.0),
    ]
    return whole.model_copy(update={"rows": rows, "columns": columns, "claims": claims, "notes": ["A note."]})


@pytest.fixture
def jobs(table: PaperTable) -> list[Job]:
    return jobs_of(table, ORDER)


@pytest.fixture
def done(jobs: list[Job]) -> list[JobResult]:
    """Three seeds of ST-SVD; of ST-VBD one failed and one was not run."""
    svd = [{"test_error_percent": error, "R_s": 30.0, "epochs": 100} for error in (1.6, 1.7, 1.8)]
    vbd = {"test_error_percent": 1.5, "R_s": 27.0, "epochs": 100}
    ends: list[tuple[Any, str, dict[str, Any]]] = [("finished", "", figures) for figures in (*svd, vbd)]
    ends += [("failed", "the loss is not finite", {}), ("missing", "not run", {})]
    return [JobResult(job, *end) for job, end in zip(jobs, ends, strict=True)]


def test_cells_gather_the_seeds(table: PaperTable, done: list[JobResult]):
    cells = cells_of(table, done)
    assert [(cell.row, cell.column) for cell in cells] == [
        ("Le-L-ST-SVD", "test_error_percent"),
        ("Le-L-ST-SVD", "R_s"),
        ("Le-L-ST-VBD", "test_error_percent"),
        ("Le-L-ST-VBD", "R_s"),
    ]
    first = cells[0]
    assert first.ours == Estimate((1.6, 1.7, 1.8))
    assert first.difference == pytest.approx(1.7 - 1.94)
    # The mean of these is 0.97 but for the last bit.
    assert replace(first, ours=Estimate((0.99, 0.95, 0.97)), published="0.97").difference == 0
    assert first.verdict == "equal"
    assert len(set(first.runs)) == 3


def test_seeds_that_are_missing_are_counted_and_the_rest_is_not_judged(table: PaperTable, done: list[JobResult]):
    """Of ST-VBD one of three seeds is left, which would be better than what is printed."""
    third, fourth = cells_of(table, done)[2:]
    assert (third.ours, third.lacking, third.verdict, third.difference) == (Estimate((1.5,)), (1, 2), "", None)
    assert (third.counted, fourth.counted) == (" (1 of 3)", " (1 of 3)")
    # Where one seed was asked for, it is all of them.
    alone = [each for each in done if each.job.seed == 0]
    assert [(cell.lacking, cell.verdict) for cell in cells_of(table, alone)[2:]] == [((), "one seed")] * 2


def test_claims_that_need_a_missing_seed_are_undecided(table: PaperTable, done: list[JobResult]):
    """Two seeds of three would decide each of these claims."""
    good = {"test_error_percent": 1.2, "R_s": 40.0}
    two = [
        replace(done[3], figures=good),
        replace(done[4], status="finished", figures={"test_error_percent": 1.21, "R_s": 41.0}),
    ]
    checked = check_claims(table, cells_of(table, [*done[:3], *two, done[5]]))
    assert [each.answer for each in checked] == ["undecided"] * 3
    assert {each.reason for each in checked} == {"Le-L-ST-VBD lacks seed 2"}
    assert all(each.test.p is None for each in checked)
    # On both sides.
    (sparser, *_) = check_claims(table, cells_of(table, [*done[1:3], replace(done[0], figures={}), *two, done[5]]))
    assert (sparser.answer, sparser.reason) == ("undecided", "Le-L-ST-VBD lacks seed 2; Le-L-ST-SVD lacks seed 0")
    # The same seeds decide where no more were asked for.
    asked = check_claims(table, cells_of(table, [*done[:3], *two]))
    assert [(each.answer, each.reason) for each in asked] == [("holds", "")] * 3
    # And nothing is said where a row has no run at all.
    none = [replace(each, figures={}, status="missing") for each in done[:3]]
    assert [each.answer for each in check_claims(table, cells_of(table, [*none, *two, done[5]]))] == [
        "untested",
        "untested",
        "undecided",
    ]


def test_claims_are_tested(table: PaperTable, done: list[JobResult]):
    # A single run of ST-VBD is compared as a number; R_s of ST-SVD has no spread.
    single = check_claims(table, cells_of(table, done[:4]))
    assert [(each.answer, each.reason) for each in single] == [("undecided", "")] * 3
    better = [
        replace(each, figures={"test_error_percent": 1.2 + 0.01 * each.job.seed, "R_s": 40.0 + each.job.seed})
        for each in done[3:]
    ]
    worse = [
        replace(each, figures={"test_error_percent": 1.8 + 0.01 * each.job.seed, "R_s": 20.0 + each.job.seed})
        for each in done[:3]
    ]
    checked = check_claims(table, cells_of(table, [*worse, *better]))
    assert [each.answer for each in checked] == ["holds", "holds", "holds"]
    swapped = [replace(one, job=other.job) for one, other in zip([*worse, *better], [*better, *worse], strict=True)]
    assert [each.answer for each in check_claims(table, cells_of(table, swapped))] == ["fails", "fails", "holds"]


def test_a_claim_may_leave_a_margin(table: PaperTable, done: list[JobResult]):
    """1.7 +- 0.1 against 1.2 +- 0.01: higher, but not by 1."""
    vbd = [replace(each, figures={"test_error_percent": 1.2 + 0.01 * each.job.seed, "R_s": 40.0}) for each in done[3:]]
    cells = cells_of(table, [*done[:3], *vbd])
    within = {"text": "t", "column": "test_error_percent", "row": "Le-L-ST-SVD", "than": "Le-L-ST-VBD"}
    claims = [Claim.model_validate({**within, "relation": r, "margin": m}) for r in ("lower", "higher") for m in (0, 1)]
    number = {**within, "relation": "lower", "than": 0.5}
    claims += [Claim.model_validate({**number, "margin": margin}) for margin in (0, 1.5)]
    checked = check_claims(table.model_copy(update={"claims": claims}), cells)
    assert [each.answer for each in checked] == ["fails", "holds", "holds", "fails", "fails", "holds"]
    assert checked[1].test.t == pytest.approx(welch(Estimate((1.6, 1.7, 1.8)), Estimate((2.2, 2.21, 2.22))).t)
    text = markdown(table, ORDER, done, cells, checked)
    assert "| 1.70 ± 0.25 | 1.21 ± 0.02 + 1 |" in text
    assert "| 1.70 ± 0.25 | 0.5 + 1.5 |" in text


def test_a_number_that_means_something_else_is_not_judged(table: PaperTable, done: list[JobResult]):
    svd = table.rows["Le-L-ST-SVD"].model_copy(update={"unlike": ["R_s"]})
    cells = cells_of(table.model_copy(update={"rows": {**table.rows, "Le-L-ST-SVD": svd}}), done)
    assert [cell.verdict for cell in cells[:2]] == ["equal", "differs"]


GOLDEN = """\
# Variational Student, table 1: MNIST, Le-L (784-300-100-10) taught by T1 (784-1200-1200-10), beside other systems

Mean ± half the 95 % interval over 3 seeds [published, difference]. One network, or one run, has no interval.

(2 of 3) and the like: only so many seeds have it; it is not judged, and no claim is decided on it.

|  | test error % | R_s |
| --- | ---: | ---: |
| Le-L-ST-SVD | 1.70 ± 0.25 [1.94, -0.24 equal] | 30.00 ± 0.00 [7.77, +22.23 better] |
| Le-L-ST-VBD | 1.50 (1 of 3) [1.88] | 27.00 (1 of 3) [12.43] |

| claim | | ours | against | t test |
|---|---|---:|---:|---|
| ST-VBD is sparser than ST-SVD | **undecided** | 27.00 | 30.00 ± 0.00 | Le-L-ST-VBD lacks seeds 1, 2 |
| ST-VBD has a lower error than ST-SVD | **undecided** | 1.50 | 1.70 ± 0.25 | Le-L-ST-VBD lacks seeds 1, 2 |
| under 2 % | **undecided** | 1.50 | 2 | Le-L-ST-VBD lacks seeds 1, 2 |

Missing:

- Le-L-ST-VBD, seed 1: the loss is not finite
- Le-L-ST-VBD, seed 2: not run

Notes:

- A note.
"""


def test_markdown(table: PaperTable, done: list[JobResult]):
    cells = cells_of(table, done)
    claims = check_claims(table, cells)
    assert markdown(table, ORDER, done, cells, claims) == GOLDEN
    smoke = markdown(table, replace(ORDER, budget="smoke"), done, cells, claims)
    assert "**budget=smoke: tiny runs on other data" in smoke
    tex = latex(table, ORDER, cells)
    assert "Le-L-ST-SVD & 1.70 $\\pm$ 0.25 & 1.94 & 30.00 $\\pm$ 0.00 & 7.77 \\\\" in tex
    assert "Le-L-ST-VBD & 1.50 (1 of 3) & 1.88 & 27.00 (1 of 3) & 12.43 \\\\" in tex
    # A complete table says nothing of it.
    complete = cells_of(table, done[:4])
    text = markdown(table, ORDER, done[:4], complete, check_claims(table, complete))
    assert "of 3)" not in text + latex(table, ORDER, complete)
    assert "| Le-L-ST-VBD | 1.50 [1.88, -0.38 one seed] |" in text
    assert "| under 2 % | **undecided** | 1.50 | 2 | not possible |" in text


def test_files(table: PaperTable, done: list[JobResult], tmp_path: Path):
    cells = cells_of(table, done)
    write_table(tmp_path, table, ORDER, done, cells, check_claims(table, cells))
    with (tmp_path / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert [run["status"] for run in runs] == ["finished"] * 4 + ["failed", "missing"]
    # Figures that a later table may want, because the folders of runs are not kept for ever.
    assert {"R_c", "memory_compression", "val_error_percent"} <= runs[0].keys()
    assert runs[4]["reason"] == "the loss is not finite"
    assert runs[0]["command"].startswith("kdx train dataset=mnist dataset.validation=0 teacher=mlp-1200-1200")
    assert runs[0]["command"].endswith("method=st-svd seed=0")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["n"], rows[0]["published"], rows[0]["verdict"]) == ("3", "1.94", "equal")
    assert [row["lacking"] for row in rows] == ["", "", "1 2", "1 2"]
    assert (rows[2]["n"], rows[2]["mean"], rows[2]["difference"], rows[2]["verdict"]) == ("1", "1.5", "", "")
    assert float(rows[0]["interval95"]) == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert len(provenance["runs"]) == 6
    assert provenance["runs"][0]["configuration"]["method"]["name"] == "st-svd"
    assert {"cpu", "torch", "kdx"} <= provenance["machine"].keys()
    assert {claim["reason"] for claim in provenance["claims"]} == {"Le-L-ST-VBD lacks seeds 1, 2"}
    # A complete table has no column for what is lacking.
    write_table(tmp_path, table, ORDER, done[:3], cells[:2], [])
    assert (tmp_path / "table.csv").read_text().startswith("row,column,n,mean,sd,interval95,published,difference,")


@pytest.fixture
def written(table: PaperTable, done: list[JobResult], tmp_path: Path) -> Path:
    """The folder of a table whose runs have no folders any more."""
    folder = tmp_path / "paper" / "vs" / "table1"
    write(folder, table, done)
    return folder


def write(folder: Path, table: PaperTable, done: list[JobResult]) -> list[Cell]:
    cells = cells_of(table, done)
    unseal(folder)
    write_table(folder, table, ORDER, done, cells, check_claims(table, cells))
    seal(folder)
    return cells


def test_what_a_table_lists_as_finished_is_taken_from_it(written: Path, table: PaperTable, done: list[JobResult]):
    jobs = [each.job for each in done]
    found = read_recorded(written, table, jobs, {})
    assert list(found) == [0, 1, 2, 3]
    machine = json.loads((written / "provenance.json").read_text())["machine"]
    for number, each in found.items():
        assert (each.job, each.status, each.recorded) == (jobs[number], "finished", machine)
        assert each.figures.items() >= done[number].figures.items()
    again = [found.get(number, each) for number, each in enumerate(done)]
    assert cells_of(table, again) == cells_of(table, done)


def test_a_record_keeps_its_machine_in_later_tables(written: Path, table: PaperTable, done: list[JobResult]):
    jobs = [each.job for each in done]
    first = read_recorded(written, table, jobs, {})
    elsewhere = {**(first[0].recorded or {}), "cpu": "another one"}
    write(written, table, [replace(first[0], recorded=elsewhere), *list(first.values())[1:], *done[4:]])
    assert [each.recorded == elsewhere for each in read_recorded(written, table, jobs, {}).values()] == [True] + [
        False
    ] * 3
    assert "- 4 of 6 runs are those of an earlier table; provenance.json" in (written / "table.md").read_text()


def test_a_record_of_other_settings_is_not_taken(written: Path, table: PaperTable):
    assert not read_recorded(written, table, jobs_of(table, replace(ORDER, overrides=("trainer.epochs=7",))), {})
    assert not read_recorded(written / "nothing", table, jobs_of(table, ORDER), {})


def test_a_new_column_is_taken_from_what_is_told_of_every_run(written: Path, table: PaperTable, done: list[JobResult]):
    jobs = [each.job for each in done]
    wider = table.model_copy(update={"columns": {**table.columns, "R_c": column()}})
    write(written, table, [replace(each, figures={**each.figures, "R_c": 9.0 + each.job.seed}) for each in done])
    found = read_recorded(written, wider, jobs, {})
    assert [each.figures["R_c"] for each in found.values()] == [9.0 + jobs[number].seed for number in found]


def test_what_other_tables_tell_of_a_run_is_kept(
    tmp_path: Path, written: Path, table: PaperTable, done: list[JobResult]
):
    jobs = [each.job for each in done]
    of_run = [replace(each, figures={**each.figures, "R_c": 9.0, "memory_compression": None}) for each in done]
    write(written.parent / "table2", table, of_run)
    found = read_recorded(written, table, jobs, recorded_runs(tmp_path))
    assert [each.figures["R_c"] for each in found.values()] == [9.0] * 4
    assert not any("memory_compression" in each.figures for each in found.values())


def test_a_record_that_cannot_serve_is_refused(written: Path, table: PaperTable, jobs: list[Job]):
    wider = table.model_copy(update={"columns": {**table.columns, "R_c": column()}})
    with pytest.raises(UserError, match=r"^recorded: the table in .* has no column R_c; allowed: false$"):
        read_recorded(written, wider, jobs, {})
    drawn = table.model_copy(update={"figure": Weights(kind="weights")})
    with pytest.raises(
        UserError, match=r"^recorded: vs/table1 is drawn from weights, and those of Le-L-ST-SVD, seed 0, are not here"
    ):
        read_recorded(written, drawn, jobs, {})
    # Of the other seeds nothing is drawn.
    one = Histogram((-1.0, 1.0), (5,), 2)
    unseal(written)
    write_histograms(written, {(job.row, job.run): one for job in (jobs[0], jobs[3])})
    seal(written)
    assert list(read_recorded(written, drawn, jobs, {})) == [0, 1, 2, 3]
    with (written / "runs.csv").open("a") as file:
        file.write("Le-L-ST-SVD,0")
    with pytest.raises(UserError, match=r"^recorded: .*runs\.csv is damaged: its content is not what was written"):
        read_recorded(written, table, jobs, {})


def test_other_settings_are_marked(table: PaperTable, done: list[JobResult]):
    changed = replace(ORDER, overrides=("device=cpu", "trainer.epochs=5", "teacher2=nin"))
    said = "**Every run with trainer.epochs=5 teacher2=nin: not the settings of this table.**"
    cells = cells_of(table, done)
    assert said in markdown(table, changed, done, cells, [])
    assert f"% {said}" in latex(table, changed, cells)
    assert "not the settings" not in markdown(table, ORDER, done, cells, [])


def test_a_figure_that_one_finished_run_lacks_is_a_missing_seed(table: PaperTable, done: list[JobResult]):
    """Nothing is left of the third network, so that it has no R_s; the mean of the others is a selection."""
    partial = [*done[:2], replace(done[2], figures={**done[2].figures, "R_s": None}), *done[3:]]
    cells = cells_of(table, partial)
    error, sparsity, *_ = cells
    assert (error.ours, error.lacking) == (Estimate((1.6, 1.7, 1.8)), ())
    assert (sparsity.ours, sparsity.verdict, sparsity.lacking) == (Estimate((30.0, 30.0)), "", (2,))
    text = markdown(table, ORDER, partial, cells, check_claims(table, cells))
    assert "| Le-L-ST-SVD | 1.70 ± 0.25 [1.94, -0.24 equal] | 30.00 ± 0.00 (2 of 3) [7.77] |" in text
    assert "Le-L-ST-VBD lacks seeds 1, 2; Le-L-ST-SVD lacks seed 2 |" in text
    assert "- Le-L-ST-SVD, seed 2: it has no R_s\n" in text
    # A run that is still to come is told already, and what no run has is no selection.
    assert text.count("it has no") == 1
    assert not any(cell.lacking for cell in cells_of(table, [replace(each, figures={}) for each in done]))
