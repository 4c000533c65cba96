"""The GPU's benchmark without a GPU: every way of a job is tried small on the CPU, and what fails is told."""

import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks import gpu, gpu_work
from benchmarks.gpu_work import TITLES, WAYS, Order


def order(job: str, folder: Path, ways: tuple[str, ...] = ("graph",), seconds: float = 0.1) -> Order:
    return Order(job, list(ways), "cpu", seconds, tiny=True, outputs=str(folder))


@pytest.mark.parametrize("job", TITLES)
def test_every_job_has_every_way(job: str, tmp_path: Path) -> None:
    """That a configuration is allowed, and that its products can be counted."""
    planned = [way for name, ways in gpu.PLAN if name == job for way in ways]
    assert {"graph", "graph-bf16", "eager", "usual"} <= set(planned) <= set(WAYS)
    assert len(planned) == len(set(planned))
    configs = {way: order(job, tmp_path, seconds=1).config(way) for way in planned if way != "graph-tf32"}
    for way, config in configs.items():
        assert config.device.graph == (False if way == "eager" else "auto")
        assert config.device.precision == ("bf16" if way.endswith("bf16") else "fp32")
        assert config.device.compile is ("compiled" in way)
    data, reason = gpu_work.data_of(configs["graph"], tiny=True)
    assert reason == "a trial"
    assert gpu_work.steps_of(order(job, tmp_path), data) == (2, 2)
    assert gpu_work.gflop_per_step(configs["graph"], data) > 0


def test_products_are_counted(tmp_path: Path) -> None:
    """784-300-100-10 forwards and twice backwards, but no gradient for the images; twice with variances."""
    weights = 784 * 300 + 300 * 100 + 100 * 10
    for job, factor in (("kd", 1), ("st-vbd", 2)):
        config = order(job, tmp_path).config("graph")
        data, _ = gpu_work.data_of(config, tiny=True)
        expected = factor * 2 * gpu_work.TINY * (3 * weights - 784 * 300)
        assert gpu_work.gflop_per_step(config, data) == pytest.approx(expected / 1e9)


def test_data_that_are_not_there_are_random_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDX_DATA", str(tmp_path))
    monkeypatch.setattr(gpu_work, "_SIZES", {"mnist": (6000, (1, 28, 28))})
    data, reason = gpu_work.data_of(order("kd", tmp_path).config("graph").model_copy(), tiny=False)
    assert reason is not None
    assert "mnist" in reason.lower()
    assert data.train.images.shape[1:] == (1, 28, 28)
    assert data.train.images.dtype == torch.uint8


def test_a_way_that_takes_too_long_is_told_and_the_next_is_tried(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "STARTING", {"cpu": 0.01})
    given = order("kd", tmp_path, ("graph", "eager"), seconds=0.01)
    found = dict(gpu._measured(given, time.monotonic() + 60))
    assert {way: figures["failed"] for way, figures in found.items()} == dict.fromkeys(found, "not done within 0 s")
    assert list(found) == ["graph", "eager"]


def test_when_the_time_is_over_the_rest_is_left_out(tmp_path: Path) -> None:
    found = dict(gpu._measured(order("kd", tmp_path, ("graph", "eager"), seconds=1), time.monotonic()))
    assert [each["failed"].partition(":")[0] for each in found.values()] == ["left out"] * 2


def test_a_process_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = dict(gpu._measured(order("kd", tmp_path), time.monotonic() + 60))
    assert found["graph"]["failed"].startswith("the process ended")


def test_after_a_failure_the_next_way_has_a_process_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """What broke may have left torch, or the GPU, as the next way would not find it by itself."""
    script = tmp_path / "worker"
    script.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "way = json.loads(sys.argv[-1])['ways'][0]\n"
        "failed = {'failed': 'a reason', 'traceback': 'of it'} if way == 'graph' else {'process': os.getpid()}\n"
        "print(json.dumps({'way': way}), json.dumps({'way': way, 'result': failed}), sep=chr(10), flush=True)\n"
        "sys.stdin.read()\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    found = dict(gpu._measured(order("kd", tmp_path, ("graph", "eager")), time.monotonic() + 60))
    assert found["graph"] == {"failed": "a reason", "traceback": "of it"}
    assert found["eager"]["process"] > 0


def test_targets() -> None:
    way = {"seconds_per_epoch": 0.05, "seconds_per_100_epochs": 7.0}
    jobs = {
        "kd": {"graph": way, "compiled": {**way, "seconds_per_100_epochs": 5.0}, "fused": {"seconds_per_epoch": 0.3}},
        "nin": {"graph-bf16": {"of_own_products": 0.4}},
        "st-vbd": {"graph": {"failed": "a reason"}},
    }
    found = [(each["measured"], each["met"]) for each in gpu.targets(jobs)]
    assert found == [(None, None), (5.0, True), (pytest.approx(6.0), False), (0.4, True)]
