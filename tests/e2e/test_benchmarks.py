"""`scripts/benchmark` as a user starts it, on little data: every way is timed, and what it does not measure it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

FIGURES = {
    *(
        "models",
        "measured_epochs",
        "seconds_per_step",
        "seconds_per_epoch",
        "seconds_per_100_epochs",
        "steps_per_epoch",
    ),
    *("setup_seconds", "evaluation_seconds", "training_seconds", "peak_memory_bytes", "precision", "synthetic"),
    *("gflop_per_step", "tflops", "peak_tflops", "of_peak", "own_products_seconds", "of_own_products"),
}


def benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_quick_run_on_digits(tmp_path: Path) -> None:
    file = tmp_path / "train.json"

    finished = benchmark(
        "train", "--quick", "--jobs", "kd", "--variants", "eager,usual", "--epochs", "1", "--output", str(file)
    )

    assert finished.returncode == 0, finished.stderr
    assert "KD of Le-L" in finished.stdout
    assert "no measurement: dataset=digits" in finished.stdout
    variants = json.loads(file.read_text())["jobs"]["kd"]["variants"]
    assert list(variants) == ["usual", "eager"]
    assert all(len(variant["seconds"]) == 1 for variant in variants.values())


def test_unknown_job_is_a_mistake_told_in_one_line() -> None:
    finished = benchmark("train", "--jobs", "st-vdb")

    assert finished.returncode == 2
    assert "did you mean 'st-vbd'" in finished.stderr


def test_quick_sweep_on_digits(tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    finished = benchmark("sweep", "--quick", "--jobs", "kd", "--ways", "fused,alone", "--output", str(file))
    assert finished.returncode == 0, finished.stderr
    assert "no measurement: dataset=digits, not MNIST" in finished.stdout
    result = json.loads(file.read_text())
    assert result["models"] == 16
    assert {way: len(seconds) for way, seconds in result["jobs"]["kd"].items()} == {"alone": 1, "fused": 1}
    assert min(seconds for (seconds,) in result["jobs"]["kd"].values()) > 0


def test_unknown_way_is_a_mistake_told_in_one_line() -> None:
    finished = benchmark("sweep", "--ways", "fusd")
    assert finished.returncode == 2
    assert finished.stderr.strip() == (
        "scripts/benchmark: --ways: 'fusd' is not known; did you mean 'fused'? allowed: alone, fused, processes"
    )


@pytest.mark.slow
def test_a_trial_on_the_cpu(tmp_path: Path) -> None:
    """Two steps of a batch of four in every epoch."""
    file = tmp_path / "gpu.json"
    ways = "graph,graph-bf16,eager,usual,fused"
    finished = benchmark(
        *("gpu", "--device", "cpu", "--tiny", "--way-seconds", "0.1", "--jobs", "kd,nin", "--ways", ways),
        *("--seconds", "800", "--output", str(file)),
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(file.read_text())
    assert result["remark"] == "on the CPU; tiny networks and synthetic data"
    assert "no measurement: on the CPU" in finished.stdout
    assert {job: set(found) for job, found in result["jobs"].items()} == {
        "kd": {"graph", "graph-bf16", "eager", "usual", "fused"},
        "nin": {"graph", "graph-bf16", "eager", "usual"},
    }
    for found in result["jobs"].values():
        for way, figures in found.items():
            assert "failed" not in figures, (way, figures)
            assert figures.keys() == FIGURES
            assert figures["synthetic"] == "a trial"
            assert figures["models"] == (3 if way == "fused" else 1)
            assert 0 < figures["seconds_per_step"] < figures["seconds_per_epoch"]
    assert result["targets"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_one_line(tmp_path: Path) -> None:
    for finished in (
        benchmark("gpu"),
        subprocess.run(
            [str(ROOT / "scripts" / "gpu_check")],
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=300,
        ),
    ):
        assert finished.returncode == 2
        assert len(finished.stderr.splitlines()) == 1
        assert "there is no NVIDIA GPU here" in finished.stderr
