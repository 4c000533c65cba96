"""Whole sweeps through the real command line, on scikit-learn's digits, under every launcher."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.short_runs import TINY, finished, folder_of, table
from omegaconf import OmegaConf

PAIR = ("train", "-m", *TINY, "method=kd", "seed=0,1")


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of the pair under Hydra's own launcher."""
    return tmp_path_factory.mktemp("built-in") / "outputs"


@pytest.fixture
def expected(kdx, built_in: Path) -> dict[str, tuple]:
    if not built_in.exists():
        folder_of(kdx(*PAIR, f"outputs={built_in}"), built_in)
    return finished(built_in)


@pytest.mark.parametrize(
    "launcher",
    [
        "joblib",
        "submitit_local",
        pytest.param("ray", marks=pytest.mark.skipif(find_spec("ray") is None, reason="the extra 'ray' is missing")),
    ],
)
def test_every_launcher_gives_the_same_runs(
    started_kdx, tmp_path: Path, expected: dict[str, tuple], launcher: str
) -> None:
    # Ray leaves a token in the home folder.
    result = started_kdx(*PAIR, f"hydra/launcher={launcher}", RAY_USAGE_STATS_ENABLED="0", HOME=str(tmp_path))
    folder = folder_of(result, tmp_path)
    assert len(expected) == 2
    assert finished(tmp_path / "outputs") == expected
    records = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*/job.json"))]
    assert [(record["number"], record["error"]) for record in records] == [(0, None), (1, None)]
    assert "95 % interval" in result.stdout


@pytest.mark.parametrize("launcher", ["basic", "fused"])
def test_what_suits_the_data_set_is_in_the_runs_of_every_launcher(kdx, tmp_path: Path, launcher: str) -> None:
    """Hydra composes the jobs of a sweep itself; a run alone, and one with the settings typed, are the same."""
    result = kdx("train", "-m", *TINY, "method=vbd,paper/vbd", "seed=0,1", f"hydra/launcher={launcher}")
    assert result.returncode == 0, result.stderr
    for number, method in enumerate(("vbd", "paper/vbd")):
        record = json.loads((folder_of(result, tmp_path) / str(2 * number) / "job.json").read_bytes())
        written = OmegaConf.load(tmp_path / record["run"] / "config.yaml")
        suited = OmegaConf.load(ROOT / "conf" / "suited" / "digits" / "vbd.yaml")
        assert (written.method.lambda_V == suited.lambda_V) == (method == "vbd")
        alone = kdx("train", *TINY, f"method={method}")
        assert "finished before, skipped" in alone.stderr
        assert folder_of(alone, tmp_path) == tmp_path / record["run"]
    typed = kdx("train", *TINY, "method=vbd", f"method.lambda_V={suited.lambda_V}")
    assert "finished before, skipped" in typed.stderr


def test_the_same_command_resumes_and_a_failed_job_stops_nobody(kdx, tmp_path: Path) -> None:
    # A learning rate at which the loss overflows.
    words = ("train", "-m", *TINY, "method=vanilla", "trainer.lr=1e30,1e-3", "seed=0,1")
    first = kdx(*words)
    assert first.returncode == 1
    folder = tmp_path / first.stdout.splitlines()[-1]
    assert folder.parent == tmp_path / "outputs" / "sweeps"
    summary = (folder / "summary.csv").read_bytes()
    lost, row = table(folder / "summary.csv")
    assert (row["n"], row["seeds"], row["lacking"]) == ("2", "0 1", "")
    assert (lost["n"], lost["lacking"], lost["method"], lost["test_error_percent_mean"]) == ("0", "0 1", "vanilla", "")
    assert float(row["test_error_percent_ci95_low"]) < float(row["test_error_percent_mean"])
    failed = table(folder / "failed.csv")
    assert [row["job"] for row in failed] == ["0", "1"]
    assert all("no longer finite" in row["reason"] for row in failed)
    assert first.stderr.splitlines()[-1].startswith("kdx: job 1 (")

    again = kdx(*words)
    assert (again.returncode, again.stdout) == (1, first.stdout)
    assert again.stderr.count("finished before, skipped") == 2
    assert (folder / "summary.csv").read_bytes() == summary

    fast = kdx(*words, "sweep.fail_fast=true")
    assert fast.returncode == 1
    assert fast.stdout == f"{first.stdout.splitlines()[-1]}\n"
    reasons = [row["reason"] for row in table(folder / "failed.csv")]
    assert "no longer finite" in reasons[0]
    assert reasons[1:] == ["not started, since job 0 failed (sweep.fail_fast=true)"] * 3
