"""Runs that are killed at random moments and continued end as if nothing had happened, bit for bit."""

import os
import random
import shutil
import signal
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from kdx.compose import single
from kdx.runs import run_folder
from tortures.child import kdx, start, wait
from tortures.work import METHODS, command, outcome, told


def torture(base: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill so many processes, spread over methods and moments; what they were at, and the trees that differ."""
    chance = random.Random(seed)
    trees, failures, phases = 0, list[str](), dict[str, int]()
    for number, name in enumerate(told("kill", list(METHODS))):
        expected, seconds = _undisturbed(base / "undisturbed", name)
        left = kills * (number + 1) // len(METHODS) - kills * number // len(METHODS)
        while left:
            folder = base / "killed"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            # Some kills on the way, then the end.
            for _ in range(min(chance.randint(1, 6), left)):
                where = _killed(name, folder, chance.uniform(0, 0.7 * seconds))
                if where is None:
                    break
                phases[where] = phases.get(where, 0) + 1
                left -= 1
            _finish(name, folder)
            trees += 1
            found = outcome(folder / "outputs")
            differing = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
            if differing:
                failures.append(f"{name}: {', '.join(differing)}")
    return {"kills": sum(phases.values()), "trees": trees, "killed_while": phases, "failures": failures}


def _undisturbed(folder: Path, name: str) -> tuple[dict[str, Any], float]:
    """What comes out where nothing is killed, and how long it takes a process that has imported everything."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    began = time.monotonic()
    _finish(name, folder)
    return outcome(folder / "outputs"), time.monotonic() - began


def _killed(name: str, folder: Path, seconds: float) -> str | None:
    """Start the run and its export, kill them after so long, and give what they were at; None where they had ended."""
    child = start([command(name), export(name)], folder, folder / "printed")
    time.sleep(seconds)
    where = phase(folder)
    os.kill(child, signal.SIGKILL)
    return where if wait(child, folder / "printed").code == -signal.SIGKILL else None


def _finish(name: str, folder: Path) -> None:
    ended = kdx([command(name), export(name)], folder, folder / "printed")
    if ended.code:
        raise SystemExit(f"torture: {' '.join(command(name))} ended with {ended.code}: {ended.err}")


def export(name: str) -> list[str]:
    """The export of the run's student; a chain has none of its own."""
    if name == "ikd":
        return ["--version"]
    with redirect_stderr(StringIO()):
        config = single(command(name)[1:])
    return ["export", run_folder(config).path.name, "format=csr"]


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
