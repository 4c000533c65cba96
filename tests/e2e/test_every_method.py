"""Every method through the real command line, on scikit-learn's digits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.short_runs import CONTRACT, SHORT, history, metrics, outcome, table

# A chain is several runs, of networks that are not the student's: test_ikd.py runs it.
METHODS = sorted(
    str(path.relative_to(ROOT / "conf" / "method").with_suffix(""))
    for path in ROOT.glob("conf/method/**/*.yaml")
    if path.stem != "ikd"
)
# Methods whose own settings must fit so few epochs.
OWN = {"sgld": ("method.burn_in=1", "method.samples=2")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every method of `conf/method`, twice with the same seed, in two output folders."""
    base = tmp_path_factory.mktemp("every-method")
    for name in ("first", "second"):
        together = ",".join(method for method in METHODS if method not in OWN)
        for method, own in {together: (), **OWN}.items():
            words = ("train", "-m", f"method={method}", *SHORT, *own, f"outputs={base / name}")
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
            "checksums.sha256",
            "history.csv",
            "student.safetensors",
            "kdx.log",
        }
        figures = metrics(folder)
        assert [key for key in CONTRACT if key not in figures] == []
        assert all(value is None or isinstance(value, int | float | str) for value in figures.values())
        assert sum(int(row["nonzero"]) for row in table(folder / "layers.csv")) == figures["nonzero_weights"]
        # Procedures of several fits go on after the first.
        stages = [row.get("stage", "1") for row in history(folder)]
        assert stages.count("1") == 3
        assert len(stages) == figures["epochs"]


def test_same_seed_same_result(swept: list[Path]) -> None:
    first = {path.parent.relative_to(swept[0]): path.parent for path in swept[0].glob("runs/*/*/*/*/metrics.json")}
    for name, folder in first.items():
        assert outcome(folder) == outcome(swept[1] / name), name


def test_one_teacher_and_one_store_serve_every_method(swept: list[Path]) -> None:
    # paper/bc sees other images, so the teacher that it is compared with is another.
    assert len(list(swept[0].glob("teachers/*/metrics.json"))) == 2
    assert len(list(swept[0].glob("logits/*/manifest.json"))) == 1
