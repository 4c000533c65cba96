"""Chains of runs through the real command line, on scikit-learn's digits."""

import signal
from pathlib import Path

import pytest
from helpers.short_runs import CONTRACT, folder_of, history, metrics, outcome, started, table, timeless

SHORT = (
    *("dataset=digits", "teacher.hidden=[16]", "teacher.trainer.epochs=2", "trainer.epochs=2"),
    *("device.threads=1", "device.latency_seconds=0"),
)
CHAIN = ("train", "method=ikd", *SHORT, "method.generations=2")


def runs(base: Path, method: str = "kd-mixture") -> list[Path]:
    """The finished runs of the method, in the order of the generations."""
    return sorted(path.parent for path in base.glob(f"outputs/runs/digits/*/{method}/*/metrics.json"))


def chain(folder: Path) -> list[tuple[str, str, str, str]]:
    return [
        (row["generation"], row["teacher"], row["accepted"], row["parameters"]) for row in table(folder / "chain.csv")
    ]


def written(folders: list[Path]) -> list[int]:
    return [(folder / "metrics.json").stat().st_mtime_ns for folder in folders]


# (784 + 1) hidden + (hidden + 1) 10, for 16, 8 and 4 hidden units.
PARAMETERS = ["12730", "6370", "3190"]


def test_a_parental_chain(kdx, tmp_path: Path) -> None:
    result = kdx(*CHAIN)
    folder = folder_of(result, tmp_path)
    first, second = runs(tmp_path)
    assert [path.parts[-3] for path in (first, second)] == ["mlp-1200-1200-filters-1", "mlp-1200-1200-filters-2"]
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "metrics.json", "layers.csv", "latency.csv", "history.csv", "student.safetensors", "kdx.log"),
        "checksums.sha256",
        "chain.csv",
    }
    rows = table(folder / "chain.csv")
    assert chain(folder) == [
        ("0", "", "yes", PARAMETERS[0]),
        ("1", "0", "yes", PARAMETERS[1]),
        ("2", "1", "yes", PARAMETERS[2]),
    ]
    (teacher,) = tmp_path.glob("outputs/teachers/*/metrics.json")
    for row, run in zip(rows, (teacher.parent, first, second), strict=True):
        assert tmp_path / "outputs" / row["run"] == run
        figures = metrics(run)
        assert float(row["test_error_percent"]) == figures["test_error_percent"]
        assert float(row["val_error_percent"]) == figures["val_error_percent"]
        assert int(row["parameters"]) == figures["parameters"]
        assert float(row["C"]) == 12730 / figures["parameters"]
    # What came out is the last generation, compared with M_0.
    figures, last = metrics(folder), metrics(second)
    assert [key for key in CONTRACT if key not in figures] == []
    same = ("student", "test_error_percent", "val_error_percent", "parameters", "dense_bytes", "epochs")
    assert [figures[key] for key in same] == [last[key] for key in same]
    assert figures["teacher_test_error_percent"] == float(rows[0]["test_error_percent"])
    assert last["teacher_test_error_percent"] == float(rows[1]["test_error_percent"])
    assert figures["R_c"] == figures["C"] == 12730 / 3190
    assert (figures["generation"], figures["chain_runs"], figures["chain"]) == (2, 2, "M_1<-M_0 M_2<-M_1")
    assert figures["train_seconds"] == pytest.approx(last["train_seconds"] + metrics(first)["train_seconds"])
    for name in ("student.safetensors", "history.csv", "layers.csv"):
        assert (folder / name).read_bytes() == (second / name).read_bytes(), name
    assert rows[1]["run"].rpartition("/")[2] in result.stdout
    told = kdx("table", folder.name[:8])
    assert told.returncode == 0
    assert told.stdout == result.stdout[: -len(result.stdout.splitlines()[-1]) - 1]

    before = written([folder, first, second])
    again = kdx(*CHAIN)
    assert folder_of(again, tmp_path) == folder
    assert again.stderr.count("skipped") == 1
    assert written([folder, first, second]) == before


@pytest.mark.parametrize(("select", "merit"), [("error", "val_error_percent"), ("loss", "val_loss")])
def test_an_ancestral_chain_shares_its_first_generation_and_can_be_compared(kdx, tmp_path, select, merit) -> None:
    result = kdx("train", "-m", *CHAIN[1:], "method.teacher=parental,ancestral", f"method.select={select}")
    assert result.returncode == 0, result.stderr
    # Two generations of one and two candidates; the parental chain is among them.
    assert len(runs(tmp_path)) == 1 + 2
    folders = {path.name: path for path in runs(tmp_path, "ikd")}
    assert all(name[:8] in result.stdout for name in folders)
    (folder,) = (path for path in folders.values() if metrics(path)["chain_runs"] == 3)
    rows = table(folder / "chain.csv")
    assert [(row["generation"], row["teacher"]) for row in rows] == [("0", ""), ("1", "0"), ("2", "0"), ("2", "1")]
    best = min(rows[2:], key=lambda row: float(row[merit]))
    assert [row["accepted"] for row in rows[2:]] == ["yes" if row is best else "no" for row in rows[2:]]
    chosen = tmp_path / "outputs" / best["run"] / "student.safetensors"
    assert (folder / "student.safetensors").read_bytes() == chosen.read_bytes()


def test_a_chain_that_is_killed_goes_on_at_its_generation(kdx, tmp_path: Path) -> None:
    words = (*CHAIN, "trainer.epochs=40")
    whole = folder_of(kdx(*words, "outputs=whole"), tmp_path)
    process = started(tmp_path, *words, "outputs=outputs", until=lambda: runs(tmp_path))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    finished = runs(tmp_path)
    (first,) = finished
    before = written(finished)
    continued = folder_of(kdx(*words, "outputs=outputs"), tmp_path)
    assert written([first]) == before
    assert (first / "kdx.log").read_text().count("not compiled") == 1
    assert len(runs(tmp_path)) == 2
    assert outcome(continued) == outcome(whole)
    assert chain(continued) == chain(whole)


def test_the_tolerance_ends_the_chain_even_at_its_beginning(kdx, tmp_path: Path) -> None:
    # At such a rate nothing is learned.
    hopeless = ("trainer.lr=1e-9", "method.tolerance=0")
    folder = folder_of(kdx(*CHAIN, *hopeless), tmp_path)
    assert [row["accepted"] for row in table(folder / "chain.csv")] == ["yes", "no"]
    (teacher,) = tmp_path.glob("outputs/teachers/*/teacher.safetensors")
    figures = metrics(folder)
    assert (figures["generation"], figures["C"], figures["chain_runs"], figures["chain"]) == (0, 1, 1, "")
    assert figures["student"] == figures["teacher"] == "mlp-1200-1200"
    assert (folder / "student.safetensors").read_bytes() == teacher.read_bytes()
    assert history(folder) == history(teacher.parent)
    # A teacher from a file has no folder, so that there is neither a run nor a history to show.
    other = folder_of(kdx(*CHAIN, *hopeless, f"teacher.checkpoint={teacher}", "outputs=here"), tmp_path)
    assert table(other / "chain.csv")[0]["run"] == ""
    assert history(other) == []
    clock = {"epochs", "seconds_per_epoch", "run_id"}
    without = {key: value for key, value in timeless(metrics(other)).items() if key not in clock}
    assert without == {key: value for key, value in timeless(figures).items() if key not in clock}
    assert kdx("table", str(other)).returncode == 0


def test_pruning_after_the_chain(kdx, tmp_path: Path) -> None:
    """M_0 and both generations are pruned in runs of their own; C then counts the weights that are left."""
    steps = ("method.pruning.steps=2", "method.pruning.retrain_epochs=1", "method.pruning.ladder=[0.5,0.75]")
    # So large a tolerance that the last rung is always taken.
    result = kdx(*CHAIN, "method.prune=true", "method.pruning.tolerance=100", *steps)
    folder = folder_of(result, tmp_path)
    pruned = [tmp_path / "outputs" / row["run"] for row in table(folder / "pruned.csv")]
    assert [path.parts[-3] for path in pruned] == [
        "mlp-1200-1200",
        "mlp-1200-1200-filters-1",
        "mlp-1200-1200-filters-2",
    ]
    assert sorted(pruned) == sorted(runs(tmp_path, "prune"))
    # A quarter of 784 n + 10 n weights, to one weight in each matrix.
    kept = [(784 * hidden + 10 * hidden) / 4 for hidden in (16, 8, 4)]
    for row, run, expected in zip(table(folder / "pruned.csv"), pruned, kept, strict=True):
        figures = metrics(run)
        assert float(row["val_error_percent"]) == figures["val_error_percent"]
        assert float(row["test_error_percent"]) == figures["test_error_percent"]
        assert int(row["nonzero_weights"]) == figures["nonzero_weights"] == pytest.approx(expected, abs=2)
        assert float(row["C"]) == metrics(pruned[0])["nonzero_weights"] / figures["nonzero_weights"]
    figures = metrics(folder)
    assert figures["C_pruned"] == float(table(folder / "pruned.csv")[2]["C"])
    assert figures["chain_runs"] == 2 + 3
    assert (folder / "student.safetensors").read_bytes() == (pruned[2] / "student.safetensors").read_bytes()
    assert "Chain after pruning" in result.stdout
    # The generations are those of the chain that is not pruned.
    before = written(runs(tmp_path))
    without = folder_of(kdx(*CHAIN), tmp_path)
    assert written(runs(tmp_path)) == before
    assert not (without / "pruned.csv").exists()
    assert metrics(without)["C"] == figures["C"]
