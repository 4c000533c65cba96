"""Every table of the papers through the real command line, on a handful of scikit-learn's digits."""

import shlex
import shutil
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.short_runs import metrics, table

from kdx.reproduce.figures import Weights
from kdx.reproduce.tables import load_table, table_names

SMOKE = ("budget=smoke", "device.threads=1")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tables, so that what several of them need is trained once."""
    return tmp_path_factory.mktemp("tables")


@pytest.mark.parametrize("name", table_names())
def test_every_table_at_smoke_budget(kdx, outputs: Path, name: str) -> None:
    # Of the large grids a part.
    parts = {"kddp/table3": "SN 50, T 2,*", "kddp/table4": "SN 50, T 2,*", "vs/fig5": "*D, ?,000"}
    parts |= {
        "noisy/fig2": "*, 0.6",
        "ikd/table1": "ResNet*, MNIST,*",
        "ikd/table2": "VGG*, MNIST,*",
        "vs/fig3": "S1,*",
        "vs/fig6": "S1, ST-VBD",
    }
    parts |= {f"noisy/table{number}": "*0.5*" for number in (2, 3, 4)}
    part = parts.get(name, "*")
    result = kdx("reproduce", name, "seeds=1", *SMOKE, f"rows={part}", KDX_OUTPUTS=str(outputs))
    assert result.returncode == 0, result.stderr
    folder = outputs / "paper" / f"{name}-smoke"
    files = {"runs.csv", "table.csv", "table.md", "table.tex", "provenance.json", "checksums.sha256"}
    pictures = {"figure.svg", "figure.png"} if "fig" in name else set()
    if isinstance(load_table(name).figure, Weights):
        pictures.add("weights.csv")
    assert {path.name for path in folder.iterdir()} == files | pictures
    text = (folder / "table.md").read_text()
    assert "**budget=smoke: tiny runs" in text
    assert text in result.stdout
    runs = table(folder / "runs.csv")
    asked = [run["row"] for run in runs if fnmatchcase(run["row"], part)]
    assert {run["status"] for run in runs if run["row"] in asked} <= {"finished"}
    assert asked or "printed" in text
    cells = table(folder / "table.csv")
    # Only the runs that a paper printed have numbers without a run.
    assert {cell["row"] for cell in cells if "printed runs" not in cell["row"]} == {run["row"] for run in runs}
    first = next(iter(load_table(name).columns))
    means = [cell["mean"] for cell in cells if cell["column"] == first and cell["row"] in asked]
    # What was timed for a fraction of a millisecond may be too noisy to be told.
    assert all(float(mean) >= 0 for mean in means if mean or not first.startswith("speedup."))
    # What the paper prints of a run, we have too.
    assert all(cell["mean"] for cell in cells if cell["published"] and cell["row"] in asked)


def test_a_table_is_continued_and_can_be_written_without_training(kdx, tmp_path: Path) -> None:
    words = ("reproduce", "noisy/table1", "seeds=1", *SMOKE)
    nothing = kdx(*words, "train=false")
    assert nothing.returncode == 0, nothing.stderr
    folder = tmp_path / "outputs" / "paper" / "noisy" / "table1-smoke"
    runs = table(folder / "runs.csv")
    assert {run["status"] for run in runs} == {"missing"}
    assert "sigma 0.5, seed 0: not run" in (folder / "table.md").read_text()
    # One of its runs, typed by hand, is found.
    chosen = next(run for run in runs if run["row"] == "sigma 0.5")
    assert kdx(*shlex.split(chosen["command"])[1:]).returncode == 0
    assert kdx(*words, "train=false").returncode == 0
    after = {run["row"]: run for run in table(folder / "runs.csv")}
    assert after["sigma 0.5"]["status"] == "finished"
    assert after["sigma 0.1"]["status"] == "missing"
    # Of chosen rows the others are trained too, and the rest stays in the table.
    assert kdx(*words, "rows=*sigma 0.1").returncode == 0
    rows = {run["row"]: run["status"] for run in table(folder / "runs.csv")}
    assert rows == {row: run["status"] for row, run in after.items()} | {"sigma 0.1": "finished"}
    # What is trained for a chosen row and is another row too, here the teacher, is found by the same command.
    elsewhere = kdx(*words, "rows=*sigma 0.1", "outputs=elsewhere")
    assert elsewhere.returncode == 0, elsewhere.stderr
    status = {run["row"]: run["status"] for run in table(tmp_path / "elsewhere/paper/noisy/table1-smoke/runs.csv")}
    assert {row for row, each in status.items() if each == "finished"} == {"teacher", "sigma 0.1"}
    (path,) = tmp_path.glob(f"outputs/runs/*/*/*/{chosen['run']}")
    assert float(after["sigma 0.5"]["test_error_percent"]) == metrics(path)["test_error_percent"]
    before = (path / "metrics.json").stat().st_mtime_ns
    assert kdx(*words).returncode == 0
    assert (path / "metrics.json").stat().st_mtime_ns == before
    assert {run["status"] for run in table(folder / "runs.csv")} == {"finished"}


@pytest.mark.parametrize(
    "launcher",
    [
        "joblib",
        "submitit_local",
        pytest.param("ray", marks=pytest.mark.skipif(find_spec("ray") is None, reason="the extra 'ray' is missing")),
    ],
)
def test_a_table_is_trained_by_a_launcher(started_kdx, tmp_path: Path, launcher: str) -> None:
    """The teacher first, then all students; a run that diverges stops no other, and one line tells how far it is."""
    words = ("reproduce", "noisy/table1", "seeds=1", "rows=*0.[12]", *SMOKE, f"hydra/launcher={launcher}")
    # Ray leaves a token in the home folder.
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}
    result = started_kdx(*words, **environment)
    assert result.returncode == 0, result.stderr
    runs = table(tmp_path / "outputs/paper/noisy/table1-smoke/runs.csv")
    finished = {run["row"]: run for run in runs if run["status"] == "finished"}
    assert set(finished) == {"teacher", "sigma 0.1", "sigma 0.2"}
    assert "noisy/table1, teachers: 1/1" in result.stderr
    assert "noisy/table1: 2/2" in result.stderr
    # Of the runs themselves nothing is shown.
    assert "job 0" not in result.stderr
    assert "noisy lenet" not in result.stderr
    again = started_kdx(*words, **environment)
    assert (again.returncode, again.stderr) == (0, "")
    assert table(tmp_path / "outputs/paper/noisy/table1-smoke/runs.csv") == runs


def test_a_run_that_a_launcher_cannot_finish_stops_no_other(kdx, started_kdx, tmp_path: Path) -> None:
    words = ("reproduce", "noisy/table1", "seeds=1", "rows=*0.[12]", *SMOKE, "trainer.lr=1e30")
    # A process of its own: a forked one would wait until joblib's idle workers end, after five minutes.
    result = started_kdx(*words, "hydra/launcher=joblib")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].count("the traceback is in") == 1
    (folder,) = (tmp_path / "outputs" / "paper" / "noisy").iterdir()
    status = {run["row"]: (run["status"], run["reason"]) for run in table(folder / "runs.csv")}
    assert status["teacher"][0] == "finished"
    assert all(status[row][0] == "failed" and "finite" in status[row][1] for row in ("sigma 0.1", "sigma 0.2"))
    unknown = kdx(*words, "hydra/launcher=joblibb")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert unknown.stderr.startswith("kdx: hydra/launcher: 'joblibb' is not known; did you mean 'joblib'?")


def test_a_table_serves_where_its_runs_are_gone(kdx, tmp_path: Path) -> None:
    words = ("reproduce", "noisy/table1", "seeds=2", *SMOKE)
    assert kdx(*words, "rows=*0.[12]").returncode == 0
    folder = tmp_path / "outputs" / "paper" / "noisy" / "table1-smoke"
    cells = table(folder / "table.csv")
    for name in ("runs", "teachers", "logits"):
        shutil.rmtree(tmp_path / "outputs" / name)
    kept = kdx(*words, "recorded=true", "train=false")
    assert (kept.returncode, kept.stderr) == (0, "")
    assert table(folder / "table.csv") == cells
    # The teacher and two rows with two seeds.
    assert f"5 of {len(table(folder / 'runs.csv'))} runs are those of an earlier table" in kept.stdout
    # Only what no table tells of is trained.
    more = kdx(*words, "recorded=true", "rows=*0.[123]")
    assert more.returncode == 0, more.stderr
    assert more.stderr.count("sigma 0.3, seed") == 2
    assert "sigma 0.2, seed" not in more.stderr
    rows = {run["row"] for run in table(folder / "runs.csv") if run["status"] == "finished"}
    assert rows == {"teacher", "sigma 0.1", "sigma 0.2", "sigma 0.3"}
    without = kdx(*words, "train=false")
    assert "4 runs that it lists as finished are not here and will be missing; recorded=true keeps" in without.stderr
    assert kdx(*words, "recorded=yes").stderr == "kdx: recorded: 'yes' is not known; allowed: false, true\n"


def test_a_run_that_fails_is_named_and_the_others_go_on(kdx, tmp_path: Path) -> None:
    # Nothing survives such a rate; the teacher, which has its own, does.
    result = kdx("reproduce", "noisy/table1", "seeds=1", *SMOKE, "trainer.lr=1e30")
    assert result.returncode == 1
    (folder,) = (tmp_path / "outputs" / "paper" / "noisy").iterdir()
    assert folder.name.startswith("table1-smoke-")
    assert str(folder.relative_to(tmp_path)) == result.stdout.splitlines()[-1]
    assert "**Every run with trainer.lr=1e30: not the settings of this table.**" in result.stdout
    runs = table(folder / "runs.csv")
    assert runs[0]["status"] == "finished"
    assert {run["status"] for run in runs[1:]} == {"failed"}
    assert "finite" in runs[1]["reason"]
    assert "sigma 0.5, seed 0" in result.stdout


def test_list_and_wrong_words(kdx) -> None:
    listed = kdx("reproduce", "--list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == table_names()
    wrong = kdx("reproduce", "vs/table11")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("kdx: reproduce: 'vs/table11' is not known; did you mean 'vs/table1'? allowed: ")
    assert wrong.stderr.count("\n") == 1
