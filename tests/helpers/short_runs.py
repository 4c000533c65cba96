"""What whole runs on scikit-learn's digits share: short settings, and what a run leaves."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from helpers import ROOT
from helpers.typed import typed

SHORT = (
    "dataset=digits",
    "trainer.epochs=3",
    "teacher.trainer.epochs=2",
    "teacher=mlp-1200-1200",
    "student=lenet-300-100",
    "student.hidden=[30,20]",
    "teacher.hidden=[40]",
    "device.latency_seconds=0.02",
    # More threads than free cores wait for each other a hundred times as long as they work.
    "device.threads=1",
)
TINY = (
    *("dataset=digits", "teacher.hidden=[8]", "student.hidden=[8]", "trainer.epochs=1", "teacher.trainer.epochs=1"),
    # The matrix-product library is measured once for each home folder, and may differ.
    *("device.latency_seconds=0", "device.threads=1", "device.gemm=default"),
)
# What every metrics.json has.
CONTRACT = [
    *("run_id", "dataset", "method", "student", "teacher", "seed", "epochs"),
    *("test_error_percent", "val_error_percent", "teacher_test_error_percent"),
    *("parameters", "weights", "nonzero_weights", "sparsity_percent", "R_s", "R_c"),
    *("dense_bytes", "csr_bytes", "teacher_dense_bytes", "memory_compression", "latency_ms"),
    *("train_seconds", "seconds_per_epoch", "device", "peak_rss_bytes", "finished_at", "kdx_version", "torch_version"),
]
# Of a repeated run everything is equal but the clock and the memory.
CLOCK = ("seconds", "latency", "csr_runtime", "peak_rss", "finished_at")


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


def started(base: Path, *words: str, until: Callable[[], object]) -> subprocess.Popen[str]:
    """`kdx WORDS` in a process of its own that works in `base`, as soon as `until` is true."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kdx", *typed(words)],
        cwd=base,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not until():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def folder_of(result: subprocess.CompletedProcess[str], base: Path) -> Path:
    assert result.returncode == 0, result.stderr
    return base / result.stdout.strip().splitlines()[-1]


def finished(base: Path) -> dict[str, tuple]:
    """What each run left, by its id."""
    return {path.parent.name: outcome(path.parent) for path in base.glob("runs/*/*/*/*/metrics.json")}
