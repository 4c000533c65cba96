"""Whole runs through the real command line, on scikit-learn's digits."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METHODS = sorted(
    str(path.relative_to(ROOT / "conf" / "method").with_suffix("")) for path in ROOT.glob("conf/method/**/*.yaml")
)
SHORT = (
    "dataset=digits",
    "trainer.epochs=3",
    "teacher.trainer.epochs=2",
    "student.hidden=[30,20]",
    "teacher.hidden=[40]",
)
# Of a repeated run everything is equal but the clock.
CLOCK = ("seconds", "latency", "csr_runtime")
CONTRACT = [
    *("run_id", "dataset", "method", "student", "teacher", "seed", "epochs"),
    *("test_error_percent", "val_error_percent", "teacher_test_error_percent"),
    *("parameters", "weights", "nonzero_weights", "sparsity_percent", "R_s", "R_c"),
    *("dense_bytes", "csr_bytes", "teacher_dense_bytes", "memory_compression", "latency_ms"),
    *("train_seconds", "seconds_per_epoch", "device", "kdx_version", "torch_version"),
]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def timeless(figures: dict) -> dict:
    return {key: value for key, value in figures.items() if not any(word in key for word in CLOCK)}


def table(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def history(folder: Path) -> list[dict]:
    return [timeless(row) for row in table(folder / "history.csv")]


def outcome(folder: Path) -> tuple[dict, list[dict], bytes]:
    return timeless(metrics(folder)), history(folder), (folder / "student.safetensors").read_bytes()


def folder_of(result: subprocess.CompletedProcess[str], base: Path) -> Path:
    assert result.returncode == 0, result.stderr
    return base / result.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every method of `conf/method`, twice with the same seed, in two output folders."""
    base = tmp_path_factory.mktemp("every-method")
    for name in ("first", "second"):
        words = ("train", "-m", f"method={','.join(METHODS)}", *SHORT, f"outputs={base / name}")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-m", "kdx", *words],
            cwd=base,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr
    return [base / "first", base / "second"]


def test_every_method_leaves_the_files_and_figures_of_the_contract(swept: list[Path]) -> None:
    folders = [path.parent for path in swept[0].glob("runs/*/*/*/*/metrics.json")]
    assert len(folders) == len(METHODS)
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {
            "config.yaml",
            "metrics.json",
            "layers.csv",
            "latency.csv",
            "history.csv",
            "student.safetensors",
            "kdx.log",
        }
        figures = metrics(folder)
        assert [key for key in CONTRACT if key not in figures] == []
        assert all(value is None or isinstance(value, int | float | str) for value in figures.values())
        assert sum(int(row["nonzero"]) for row in table(folder / "layers.csv")) == figures["nonzero_weights"]
        assert len(history(folder)) == 3


def test_same_seed_same_result(swept: list[Path]) -> None:
    first = {path.parent.relative_to(swept[0]): path.parent for path in swept[0].glob("runs/*/*/*/*/metrics.json")}
    for name, folder in first.items():
        assert outcome(folder) == outcome(swept[1] / name), name


def test_one_teacher_and_one_store_serve_every_method(swept: list[Path]) -> None:
    assert len(list(swept[0].glob("teachers/*/metrics.json"))) == 1
    assert len(list(swept[0].glob("logits/*/manifest.json"))) == 1


def test_two_teachers_have_a_folder_and_a_store_each(kdx, tmp_path: Path) -> None:
    short = (*SHORT, "method=noisy", "trainer.epochs=1", "device.latency_seconds=0")
    second = ("teacher2=mlp-1200-1200", "teacher2.hidden=[20]", "teacher2.trainer.epochs=1")
    figures = metrics(folder_of(kdx("train", *short, *second), tmp_path))
    assert figures["teacher"] == "mlp-1200-1200+mlp-1200-1200"
    assert len(list(tmp_path.glob("outputs/teachers/*/teacher.safetensors"))) == 2
    assert len(list(tmp_path.glob("outputs/logits/*/manifest.json"))) == 2
    alone = metrics(folder_of(kdx("train", *short), tmp_path))
    # The first teacher was there already, and it is the one whose size counts.
    assert len(list(tmp_path.glob("outputs/teachers/*/teacher.safetensors"))) == 2
    assert alone["R_c"] == figures["R_c"]
    assert alone["teacher_test_error_percent"] != figures["teacher_test_error_percent"]
    # A sweep spells the word for Hydra and finds the same run again.
    swept = kdx("train", "-m", *short, *second)
    assert swept.returncode == 0, swept.stderr
    assert f"{figures['run_id']}: finished before" in swept.stderr


def test_another_seed_is_another_run(kdx, tmp_path: Path) -> None:
    short = (*SHORT, "method=kd", "trainer.epochs=1")
    first = folder_of(kdx("train", *short), tmp_path)
    second = folder_of(kdx("train", *short, "seed=1"), tmp_path)
    assert first != second
    assert (first / "student.safetensors").read_bytes() != (second / "student.safetensors").read_bytes()
    both = kdx("table", str(first), str(second))
    assert both.returncode == 0
    assert first.name[:8] in both.stdout
    assert second.name[:8] in both.stdout


def test_finished_runs_are_skipped_and_forced_ones_repeated(kdx, tmp_path: Path) -> None:
    words = ("train", *SHORT, "method=vanilla", "trainer.epochs=1")
    folder = folder_of(kdx(*words), tmp_path)
    before, written = outcome(folder), (folder / "metrics.json").stat().st_mtime_ns
    again = kdx(*words)
    assert folder_of(again, tmp_path) == folder
    assert "skipped" in again.stderr
    assert (folder / "metrics.json").stat().st_mtime_ns == written
    assert folder_of(kdx(*words, "force=true"), tmp_path) == folder
    assert (folder / "metrics.json").stat().st_mtime_ns > written
    assert outcome(folder) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(kdx, tmp_path: Path, number: signal.Signals) -> None:
    words = (*SHORT, "method=st-vbd", "method.warmup_end=6", "trainer.epochs=60", "trainer.checkpoint_seconds=0")
    whole = folder_of(kdx("train", *words, "outputs=whole"), tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "kdx", "train", *words, "outputs=stopped"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("stopped/runs/*/*/*/*/checkpoint.safetensors")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), said
    assert not list(tmp_path.glob("stopped/runs/*/*/*/*/metrics.json"))
    continued = folder_of(kdx("train", *words, "outputs=stopped"), tmp_path)
    assert "continued at step" in (continued / "kdx.log").read_text()
    assert outcome(continued) == outcome(whole)
    assert not (continued / "checkpoint.safetensors").exists()


def test_a_sweep_of_two_values_ends_with_one_table(kdx, tmp_path: Path) -> None:
    result = kdx("train", "-m", *SHORT, "method=kd", "method.T=2,8", "trainer.epochs=1")
    assert result.returncode == 0, result.stderr
    folders = [path.parent for path in tmp_path.glob("outputs/runs/*/*/kd/*/metrics.json")]
    assert len(folders) == 2
    assert all(folder.name[:8] in result.stdout for folder in folders)


def test_validation_zero_trains_on_everything(kdx, tmp_path: Path) -> None:
    folder = folder_of(kdx("train", *SHORT, "method=vanilla", "trainer.epochs=1", "dataset.validation=0"), tmp_path)
    assert metrics(folder)["val_error_percent"] is None


def test_a_teacher_from_elsewhere(kdx, tmp_path: Path) -> None:
    folder_of(kdx("train", *SHORT, "method=kd", "trainer.epochs=1", "outputs=there"), tmp_path)
    (weights,) = tmp_path.glob("there/teachers/*/teacher.safetensors")
    words = ("train", *SHORT, "method=kd", "trainer.epochs=1", "outputs=here", f"teacher.checkpoint={weights}")
    folder = folder_of(kdx(*words), tmp_path)
    assert metrics(folder)["teacher_test_error_percent"] is not None
    assert not (tmp_path / "here" / "teachers").exists()
    wrong = kdx(*words, "teacher.hidden=[41]")
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert "made for another network" in wrong.stderr
