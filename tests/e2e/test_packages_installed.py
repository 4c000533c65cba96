"""A package beside kdx as its users have it: installed by pip, or as the README shows it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.packages import SAMPLE, lay_out, readme_files

SHORT = ("trainer.epochs=4", "teacher.trainer.epochs=8", "device.latency_seconds=0.01")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where Python finds kdx and the sample package, which pip has built and installed."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("installed")
    shutil.copytree(SAMPLE, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--target", str(target), str(source)], check=True, capture_output=True)
    return f"{ROOT}:{target}"


def test_a_run_on_its_data_with_its_network_and_method(path: str, started_kdx, tmp_path: Path):
    fast = [
        f"{trainer}.{setting}" for trainer in ("trainer", "teacher.trainer") for setting in ("lr=0.01", "batch_size=16")
    ]
    words = ("train", "dataset=stripes", "method=kd-smooth", *fast, *SHORT)
    ended = started_kdx(*words, PYTHONPATH=path)
    assert ended.returncode == 0, ended.stderr
    run = ended.stdout.splitlines()[-1]
    assert run.startswith("outputs/runs/stripes/bottleneck/kd-smooth/")
    figures = json.loads((tmp_path / run / "metrics.json").read_bytes())
    assert re.fullmatch(r"kdx-stripes 1\.0 \([0-9a-f]{12}\)", figures["packages"])
    assert (figures["fits"], figures["epochs"]) == (2, 8)
    assert (figures["teacher"], figures["student"]) == ("bottleneck", "bottleneck")
    # A network that learnt nothing is wrong half of the time.
    assert figures["test_error_percent"] < 25
    assert figures["teacher_test_error_percent"] < 25
    (teacher,) = (tmp_path / "outputs" / "teachers").glob("*/metrics.json")
    assert json.loads(teacher.read_bytes())["packages"] == figures["packages"]
    assert "uniform" in (tmp_path / run / "history.csv").read_text().splitlines()[0]

    again = started_kdx(*words, PYTHONPATH=path)
    assert (again.returncode, again.stdout) == (0, ended.stdout)
    assert "finished before, skipped" in again.stderr

    exported = started_kdx("export", run, "format=csr", PYTHONPATH=path)
    assert exported.returncode == 0, exported.stderr

    # Without the package its results are still shown; what needs its code says so.
    assert started_kdx("table", run).returncode == 0
    refused = started_kdx("export", run, "format=csr")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "written by another version of kdx or of a package: dataset.name: 'stripes' is not known" in refused.stderr


def test_a_sweep_in_processes(path: str, started_kdx, tmp_path: Path):
    words = ("dataset=stripes", "method=vanilla,kd-smooth", *SHORT)
    ended = started_kdx("train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *words, PYTHONPATH=path)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "outputs" / "runs" / "stripes").rglob("metrics.json"))) == 2


def test_the_package_of_the_readme(started_kdx, tmp_path: Path):
    files = readme_files()
    assert files.keys() == {
        "pyproject.toml", "kdx_confidence/__init__.py", "kdx_confidence/conf/method/confidence.yaml",
    }  # fmt: skip
    path = f"{ROOT}:{lay_out(tmp_path / 'site', files)}"
    words = ("method=confidence", "method.beta=0.2", "dataset=digits", "student=mlp-500-50", "student.hidden=[8]")
    teacher = ("teacher=mlp-400-400", "teacher.hidden=[8]")
    ended = started_kdx("train", *words, *teacher, *SHORT, PYTHONPATH=path)
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / ended.stdout.splitlines()[-1]
    assert json.loads((run / "metrics.json").read_bytes())["packages"].startswith("kdx-confidence 1.0 (")
    assert "confidence" in (run / "history.csv").read_text().splitlines()[0].split(",")
