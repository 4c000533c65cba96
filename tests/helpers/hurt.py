"""What kdx must survive: the runs that are hurt, small but with every phase of real ones, and what they come to."""

import errno
import fcntl
import hashlib
import os
import resource
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from helpers.forked import Before, Child, Ended, environment
from helpers.short_runs import metrics, table, timeless
from kdx.config.compose import compose_config
from kdx.data.download import SourceSet
from kdx.runs.folder import run_folder
from kdx.training import trainer

Outcome = dict[str, Any]

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


def command(name: str) -> list[str]:
    """`kdx train` of one of the methods; a chain has no student of its own to size."""
    small = [word for word in SMALL if name != "ikd" or not word.startswith("student.")]
    return ["train", *small, *METHODS[name]]


def export(name: str) -> list[str]:
    """The export of the run's student; a chain has none of its own."""
    if name == "ikd":
        return ["--version"]
    return ["export", run_folder(compose_config(command(name)[1:])).path.name, "format=csr"]


def start(
    commands: Sequence[Sequence[str]], base: Path, *before: Before, capture: Path | None = None, **variables: str
) -> Child:
    """Run commands one after another in a process that works in `base`."""
    printed = capture or base.with_name(f"{base.name}.printed")
    return Child(commands, base, printed, environment(**variables), (_strict_and_eager, *before))


def run(commands: Sequence[Sequence[str]], base: Path, *before: Before, **variables: str) -> Ended:
    """Run commands to their end."""
    return start(commands, base, *before, **variables).wait()


def finish(commands: Sequence[Sequence[str]], base: Path) -> tuple[Outcome, float]:
    """What comes of commands that nothing hurts, and how many seconds they take."""
    base.mkdir(exist_ok=True)
    began = time.monotonic()
    ended = run(commands, base)
    assert ended.code == 0, f"{commands[ended.ran]}: {ended.err}"
    return outcome(base / "outputs"), time.monotonic() - began


def outcome(outputs: Path) -> Outcome:
    """What the runs under `outputs` came to: figures, history and weights of all of them and of their teachers."""
    found: Outcome = {}
    for folder in sorted(path.parent for path in outputs.glob("*/**/metrics.json")):
        name = folder.relative_to(outputs).as_posix()
        found[f"{name} metrics"] = timeless(metrics(folder))
        for rows in sorted(folder.glob("*.csv")):
            if rows.name != "latency.csv":
                found[f"{name} {rows.name}"] = [timeless(row) for row in table(rows)]
        for tensors in sorted(folder.glob("**/*.safetensors")):
            digest = hashlib.sha256(tensors.read_bytes()).hexdigest()
            found[f"{name} {tensors.relative_to(folder)}"] = digest
    return found


def differing(found: Outcome, expected: Outcome) -> str:
    """What is in one of them only or not the same; empty where nothing is."""
    keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    return f"another result: {', '.join(keys)}" if keys else ""


def phase(folder: Path) -> str:
    """What a run is at, by its files."""
    outputs = folder / "outputs"
    if any(outputs.glob("runs/**/metrics.json")):
        return "export"
    if any(outputs.glob("runs/**/student.safetensors")):
        return "measuring"
    if any(outputs.glob("runs/**/checkpoint*.safetensors")):
        return "training"
    if any(outputs.glob("logits/*/manifest.json")):
        return "between store and training"
    if any(outputs.glob("teachers/*/metrics.json")):
        return "store"
    if any(outputs.glob("teachers/*/checkpoint.safetensors")):
        return "teacher"
    return "start"


def _strict_and_eager() -> None:
    # Whatever could come out otherwise the next time is an error.
    torch.use_deterministic_algorithms(True)
    # A small run would otherwise write few checkpoints, and few kills would hit one.
    trainer.CHECKPOINT_SHARE = 1


# What is done in the child, whose functions must be found in a module that it can import.


def take_for_official(dataset: str, sources: SourceSet) -> None:
    """Let a data set be made of these files."""
    import_module(f"kdx.data.{dataset}").SOURCES = sources


def limit_files(most: int) -> None:
    """No file may grow beyond so many bytes, like a quota."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def become_nobody() -> None:
    """Another user, who may read the folders but write none of them."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def move_to_a_network() -> None:
    """A bad network disk: renaming takes its time, and there are neither hard links nor locks."""
    rename = os.replace

    def slow(*paths: Any) -> None:
        time.sleep(0.02)
        rename(*paths)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    os.replace = os.rename = slow
    os.link = fcntl.flock = refuse
