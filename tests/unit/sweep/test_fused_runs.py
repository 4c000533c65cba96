"""Whole runs that are trained together: which take part, what becomes of each, on scikit-learn's digits."""

import logging
import weakref
from pathlib import Path
from traceback import format_exception

import pytest
import torch
from filelock import FileLock
from helpers.short_runs import metrics

from kdx.config.compose import compose_sweep
from kdx.config.schema import Config
from kdx.errors import UserError
from kdx.experiment import run
from kdx.runs.folder import run_folder
from kdx.sweep import fused_runs
from kdx.sweep.fused_runs import fit_fused, run_fused

TINY = (
    *("dataset=digits", "dataset.train_size=200", "student.hidden=[6]", "trainer.epochs=1", "method=vanilla"),
    *("teacher.hidden=[6]", "teacher.trainer.epochs=1"),
    *("device=cpu", "device.threads=1", "device.gemm=default", "device.latency_seconds=0"),
)


def configs(folder: Path, *words: str) -> list[Config]:
    typed = {word.partition("=")[0] for word in words}
    usual = [word for word in TINY if word.partition("=")[0] not in typed]
    return [job.config for job in compose_sweep([*usual, f"outputs={folder}", *words])]


def test_every_run_has_its_folder(tmp_path: Path):
    each = configs(tmp_path, "seed=0,1,2")
    assert run_fused(each, "loop", None) == [run_folder(config).path for config in each]
    files = {
        "config.yaml",
        "history.csv",
        "kdx.log",
        "latency.csv",
        "checksums.sha256",
        "layers.csv",
        "metrics.json",
        "student.safetensors",
    }
    for config in each:
        assert {path.name for path in run_folder(config).path.iterdir()} == files
        assert (metrics(run_folder(config).path)["seed"], metrics(run_folder(config).path)["fused_models"]) == (
            config.seed,
            3,
        )
        assert f"seed: {config.seed}\n" in (run_folder(config).path / "config.yaml").read_text()
        assert "3 runs are trained together" in run_folder(config).log_file.read_text()
    assert not logging.getLogger("kdx").handlers


def test_finished_and_locked_runs_are_left_out(tmp_path: Path):
    each = configs(tmp_path, "seed=0,1,2,3")
    run(each[0])
    before = (run_folder(each[0]).path / "metrics.json").read_bytes()
    path = run_folder(each[2]).path
    with FileLock(path.with_name(f".{path.name}.lock")):
        outcomes = run_fused(each, "loop", None)
    assert outcomes == [None, run_folder(each[1]).path, None, run_folder(each[3]).path]
    assert (run_folder(each[0]).path / "metrics.json").read_bytes() == before
    assert not path.exists()
    # One that is left over is not trained together with anybody.
    assert run_fused(each, "loop", None) == [None] * 4
    repeated = [config.model_copy(update={"force": True}) for config in each[:2]]
    assert run_fused(repeated, "loop", None) == [run_folder(config).path for config in repeated]
    assert metrics(run_folder(each[0]).path)["fused_models"] == 2


def test_locks_are_free_afterwards(tmp_path: Path):
    each = configs(tmp_path, "seed=0,1")
    run_fused(each, "loop", None)
    for config in each:
        with run_folder(config).lock(wait=False) as held:
            assert held


def test_max_models_splits_a_group(tmp_path: Path):
    each = configs(tmp_path, "seed=0,1,2,3,4")
    run_fused(each, "loop", 3)
    assert [metrics(run_folder(config).path)["fused_models"] for config in each] == [2, 2, 3, 3, 3]


def test_a_group_that_does_not_fit_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    left: list[weakref.ref] = []

    def full(fits, *arguments):
        assert all(made() is None for made in left), "what did not fit takes the memory of what would"
        if len(fits) > 2:
            # In a cycle, as the frames are through which such an error went.
            made = torch.nn.Linear(1, 1)
            made.register_forward_hook(lambda *_: made)
            left.append(weakref.ref(made))
            raise torch.OutOfMemoryError
        return fit_fused(fits, *arguments)

    monkeypatch.setattr(fused_runs, "fit_fused", full)
    each = configs(tmp_path, "seed=0,1,2")
    assert run_fused(each, "loop", None) == [run_folder(config).path for config in each]
    assert [metrics(run_folder(config).path)["fused_models"] for config in each] == [1, 2, 2]
    assert len(left) == 1
    assert "3 models do not fit in memory together" in caplog.text


def test_what_fails_after_the_training_is_one_runs_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report = fused_runs.report

    def failing(config: Config, *arguments) -> None:
        if config.seed == 1:
            raise OSError("no space")
        report(config, *arguments)

    monkeypatch.setattr(fused_runs, "report", failing)
    each = configs(tmp_path, "seed=0,1,2")
    first, failure, last = run_fused(each, "loop", None)
    assert isinstance(failure, OSError)
    assert [first, last] == [run_folder(each[0]).path, run_folder(each[2]).path]


def test_a_setting_that_does_not_fit_the_network_is_one_runs_failure(tmp_path: Path):
    each = configs(tmp_path, "method=bc", "method.threshold=[-3,-3,-3],-3,-2")
    refused, *others = run_fused(each, "loop", None)
    assert isinstance(refused, UserError)
    assert "method.threshold: [-3.0, -3.0, -3.0] is not allowed" in str(refused)
    assert others == [run_folder(config).path for config in each[1:]]


def test_a_failure_holds_nothing_that_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    held = []

    def failing(fits, *_: object) -> list:
        held.extend(weakref.ref(each.network) for each in fits)
        try:
            raise OSError("no space")
        except OSError as error:
            raise RuntimeError("broken") from error

    monkeypatch.setattr(fused_runs, "fit_fused", failing)
    failure, same = run_fused(configs(tmp_path, "seed=0,1"), "loop", None)
    assert isinstance(failure, RuntimeError)
    assert failure is same
    assert [network() for network in held] == [None, None]
    assert "in failing" in "".join(format_exception(failure))


def test_what_fails_before_is_everybodys(tmp_path: Path):
    each = configs(tmp_path, "seed=0,1", "dataset.validation=100000")
    outcomes = run_fused(each, "loop", None)
    assert [type(outcome) for outcome in outcomes] == [UserError, UserError]
    assert "dataset.validation" in str(outcomes[0])
