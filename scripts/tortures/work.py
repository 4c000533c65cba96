"""The runs that are tortured: small, but with every phase of real ones."""

import csv
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

SMALL = (
    "dataset=digits",
    "dataset.validation=200",
    "student.hidden=[24,12]",
    "teacher=mlp-1200-1200",
    "teacher.hidden=[40]",
    "teacher.trainer.epochs=6",
    "trainer.epochs=8",
    # Many checkpoints, so that many kills hit one.
    "trainer.checkpoint_seconds=0.02",
    "teacher.trainer.checkpoint_seconds=0.02",
    "device=cpu",
    "device.threads=1",
    "device.gemm=default",
    "device.compile=false",
    "device.latency_seconds=0.05",
)
METHODS = {
    "st-vbd": ("method=st-vbd",),
    "kddp": ("method=kddp", "method.L1=1e-5"),
    "ip": ("method=ip", "method.iterations=2", "method.retrain_epochs=2"),
    "bdk": ("method=bdk",),
    "prune": ("method=prune", "method.steps=2", "method.retrain_epochs=2"),
    "ikd": ("method=ikd", "method.generations=2"),
}
# Of a repeated run everything is equal but the clock and the memory.
_CLOCK = ("seconds", "latency", "csr_runtime", "peak_rss", "finished_at")


Blow = TypeVar("Blow")


def told(name: str, blows: Sequence[Blow]) -> Iterator[Blow]:
    """The blows one after another, with a line on stderr now and then that says how far they are."""
    often = max(len(blows) // 20, 1)
    for number, blow in enumerate(blows):
        if number and number % often == 0:
            print(f"torture: {name} {number} of {len(blows)}", file=sys.stderr, flush=True)
        yield blow


def command(name: str) -> list[str]:
    """`kdx train` of one of the methods; a chain has no student of its own to size."""
    small = [word for word in SMALL if name != "ikd" or not word.startswith("student.")]
    return ["train", *small, *METHODS[name]]


def outcome(outputs: Path) -> dict[str, Any]:
    """What the runs under `outputs` came to: figures, history and weights of all of them and of their teachers."""
    found: dict[str, Any] = {}
    for metrics in sorted(outputs.glob("*/**/metrics.json")):
        folder = metrics.parent
        name = folder.relative_to(outputs).as_posix()
        found[f"{name} metrics"] = _timeless(json.loads(metrics.read_text()))
        for table in sorted(folder.glob("*.csv")):
            if table.name != "latency.csv":
                with table.open(newline="") as file:
                    found[f"{name} {table.name}"] = [_timeless(row) for row in csv.DictReader(file)]
        for tensors in sorted(folder.glob("**/*.safetensors")):
            digest = hashlib.sha256(tensors.read_bytes()).hexdigest()
            found[f"{name} {tensors.relative_to(folder)}"] = digest
    return found


def _timeless(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if not any(word in key for word in _CLOCK)}
