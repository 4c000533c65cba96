"""Whole sweeps whose jobs are trained together, through the real command line, on scikit-learn's digits."""

import signal
from pathlib import Path

import pytest
from helpers.short_runs import TINY, finished, metrics, started, table

# One model after another, whose results are those of a run alone bit for bit.
LOOP = ("hydra/launcher=fused", "hydra.launcher.way=loop")


def apart(outputs: Path) -> dict[str, tuple]:
    """What each run left, but for the number of models that were trained together."""
    return {
        name: ({key: value for key, value in figures.items() if key != "fused_models"}, *rest)
        for name, (figures, *rest) in finished(outputs).items()
    }


def test_fused_is_one_after_another(kdx, tmp_path: Path) -> None:
    # Two groups of four, of two orders of the examples each, and two jobs that train alone.
    words = ("train", "-m", *TINY, "method=kd-dropout,st-vbd,kddp", "seed=0,1", "trainer.lr=1e-3,2e-3")
    alone = kdx(*words, "outputs=alone")
    fused = kdx(*words, "outputs=fused", *LOOP)
    assert (alone.returncode, fused.returncode) == (0, 0), fused.stderr
    assert fused.stdout == alone.stdout.replace("alone/sweeps", "fused/sweeps")
    assert apart(tmp_path / "fused") == apart(tmp_path / "alone")
    assert fused.stderr.count("together with others") == 8
    models = {
        path: metrics(path.parent).get("fused_models") for path in tmp_path.glob("fused/runs/*/*/*/*/metrics.json")
    }
    assert len(models) == 12
    assert {path.parts[-3]: count for path, count in models.items()} == {"kd-dropout": 4, "st-vbd": 4, "kddp": None}

    again = kdx(*words, "outputs=fused", *LOOP)
    assert (again.returncode, again.stdout) == (0, fused.stdout)
    assert again.stderr.count("finished before, skipped") == 12


def test_one_that_diverges_is_recorded_and_the_others_finish(kdx, tmp_path: Path) -> None:
    words = ("train", "-m", *TINY, "method=vanilla", "trainer.lr=1e30,1e-3", "seed=0,1", "sweep.name=diverging")
    result = kdx(*words, "hydra/launcher=fused")
    assert result.returncode == 1
    folder = tmp_path / "outputs/sweeps/diverging"
    lost, row = table(folder / "summary.csv")
    assert (lost["n"], lost["lacking"]) == ("0", "0 1")
    assert (row["n"], row["seeds"]) == ("2", "0 1")
    failed = table(folder / "failed.csv")
    assert [row["job"] for row in failed] == ["0", "1"]
    for row in failed:
        assert row["reason"].startswith(
            "Diverged: vanilla lenet-300-100: cross_entropy is no longer finite in epoch 1, step 2;"
        )
        assert "the traceback is in" in row["reason"]
    # Of a second group, and of those that were finished before, nothing is started.
    fast = kdx(*words, "trainer.epochs=1,2", "hydra/launcher=fused", "sweep.fail_fast=true")
    reasons = [row["reason"] for row in table(folder / "failed.csv")]
    assert fast.returncode == 1
    assert reasons[2:] == ["not started, since job 0 failed (sweep.fail_fast=true)"] * 6


LONG = (*TINY, "method=kd-vbd", "trainer.epochs=20")
SWEPT = ("seed=0,1", "method.lambda_V=0.5,1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of the sweep that nobody stops."""
    return tmp_path_factory.mktemp("whole") / "outputs"


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_continued(kdx, tmp_path: Path, whole: Path, stop: signal.Signals) -> None:
    if not whole.exists():
        assert kdx("train", "-m", *LONG, *SWEPT, *LOOP, f"outputs={whole}").returncode == 0

    def checkpoints() -> bool:
        return len(list(tmp_path.glob("stopped/runs/*/*/*/*/checkpoint.safetensors"))) == 4

    often = ("outputs=stopped", "trainer.checkpoint_seconds=0")
    process = started(tmp_path, "train", "-m", *LONG, *SWEPT, *LOOP, *often, until=checkpoints)
    process.send_signal(stop)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -stop), stderr
    assert checkpoints()
    # One of them alone, the others together.
    one = kdx("train", *LONG, "seed=1", "method.lambda_V=0.5", "outputs=stopped")
    assert one.returncode == 0, one.stderr
    rest = kdx("train", "-m", *LONG, *SWEPT, *LOOP, "outputs=stopped")
    assert rest.returncode == 0, rest.stderr
    assert apart(tmp_path / "stopped") == apart(whole)
    logs = [path.read_text() for path in tmp_path.glob("stopped/runs/*/*/*/*/kdx.log")]
    assert all("continued at step" in text for text in logs)
