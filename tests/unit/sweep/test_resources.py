"""The share of a machine that each job of a sweep gets; the machines are made up."""

import importlib.util
import platform
from pathlib import Path

import joblib
import pytest
import torch
from filelock import FileLock

from kdx.config.compose import compose_sweep
from kdx.errors import UserError
from kdx.sweep import resources
from kdx.sweep.ray_launcher import share
from kdx.sweep.resources import acquire_gpu, check_launcher, divide_cores


def machine(monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int) -> list[int]:
    """A machine with so many cores and GPUs; the GPUs that are chosen are listed."""
    chosen: list[int] = []
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize(
    ("cores", "gpus", "words", "expected"),
    [
        (8, 0, ["hydra/launcher=joblib"], ["hydra.launcher.n_jobs=3", "device.threads=2"]),
        (2, 0, ["hydra/launcher=joblib"], ["hydra.launcher.n_jobs=2", "device.threads=1"]),
        (16, 2, ["hydra/launcher=joblib"], ["hydra.launcher.n_jobs=2", "device.threads=8"]),
        (16, 2, ["hydra/launcher=joblib", "device=cpu"], ["hydra.launcher.n_jobs=3", "device.threads=5"]),
        (16, 2, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"], ["device.threads=5"]),
        (16, 0, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=-9"], ["device.threads=5"]),
        (8, 0, ["hydra/launcher=joblib", "device.threads=4"], ["hydra.launcher.n_jobs=3"]),
        (8, 0, ["hydra/launcher=submitit_local"], ["device.threads=2"]),
        (1, 0, ["hydra/launcher=submitit_local"], ["device.threads=1"]),
        (8, 2, ["hydra/launcher=submitit_local"], ["hydra.launcher.gpus_per_node=2", "device.threads=2"]),
        (8, 0, ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=4"], ["device.threads=4"]),
        # No more than there are.
        (2, 0, ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=4"], ["device.threads=2"]),
        (8, 2, ["hydra/launcher=submitit_slurm"], []),
        (8, 2, ["hydra/launcher=ray"], []),
        (8, 2, [], []),
    ],
)
def test_cores_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, words: list[str], expected: list[str]
):
    machine(monkeypatch, cores, gpus)
    overrides = ["seed=0,1,2", *words]
    assert divide_cores(overrides, compose_sweep(overrides)) == expected


@pytest.mark.parametrize(
    ("launcher", "setting"),
    [("joblib", "n_jobs=0"), ("submitit_local", "cpus_per_task=0"), ("submitit_local", "cpus_per_task=-1")],
)
def test_no_share_at_all_is_refused(monkeypatch: pytest.MonkeyPatch, launcher: str, setting: str):
    machine(monkeypatch, 8, 0)
    overrides = ["seed=0,1", f"hydra/launcher={launcher}", f"hydra.launcher.{setting}"]
    key, value = setting.split("=")
    with pytest.raises(UserError, match=rf"^hydra\.launcher\.{key}: {value} is not allowed; allowed: "):
        divide_cores(overrides, compose_sweep(overrides))


def test_each_process_has_a_gpu_of_its_own_while_there_are_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    chosen = machine(monkeypatch, 8, 2)
    other = FileLock(tmp_path / f".gpu-{platform.node()}-0.lock")
    with other, acquire_gpu(tmp_path, 0, "auto") as gpu:
        assert gpu == 1
    with acquire_gpu(tmp_path, 5, "cuda") as gpu:
        assert gpu == 0
    second = FileLock(tmp_path / f".gpu-{platform.node()}-1.lock")
    with other, second, acquire_gpu(tmp_path, 5, "cuda") as gpu:
        # All are taken: they are shared.
        assert gpu == 1
    assert chosen == [1, 0, 1]


@pytest.mark.parametrize(("gpus", "kind"), [(0, "auto"), (1, "cuda"), (4, "cpu")])
def test_where_there_is_no_choice_none_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, kind: str):
    chosen = machine(monkeypatch, 8, gpus)
    with acquire_gpu(tmp_path, 0, kind) as gpu:
        assert gpu is None
    assert chosen == []


@pytest.mark.parametrize(
    ("cluster", "jobs", "given", "expected"),
    [
        ({"CPU": 8.0, "node:a": 1.0}, 2, (None, None), (4, 0)),
        ({"CPU": 8.0, "node:a": 1.0}, 100, (None, None), (1, 0)),
        ({"CPU": 16.0, "GPU": 2.0, "node:a": 1.0, "node:__internal_head__": 1.0}, 6, (None, None), (8, 1)),
        ({"CPU": 32.0, "node:a": 1.0, "node:b": 1.0}, 1, (None, None), (16, 0)),
        ({"CPU": 16.0, "GPU": 2.0, "node:a": 1.0}, 6, (None, 0.5), (4, 0.5)),
        ({"CPU": 16.0, "node:a": 1.0}, 6, (3, None), (3, 0)),
    ],
)
def test_the_share_of_a_ray_cluster(cluster: dict, jobs: int, given: tuple, expected: tuple):
    assert share(cluster, jobs, *given) == expected


@pytest.mark.parametrize(
    ("launcher", "extra"), [("ray", "ray"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm")]
)
def test_a_launcher_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch, launcher: str, extra: str):
    check_launcher(["hydra/launcher=joblib", "seed=0,1"])
    monkeypatch.setattr(resources, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"^hydra/launcher: '{launcher}' is not installed; .*kdx\[{extra}\]"):
        check_launcher(["seed=0,1", f"hydra/launcher={launcher}"])
    assert importlib.util.find_spec("hydra_plugins.kdx_launchers")
