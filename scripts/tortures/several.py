"""Processes that start the same run, or runs with the same teacher, at the same moment, some of them killed.

Every third time their folder is like that of a bad network disk.
"""

import errno
import fcntl
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tortures.child import HUNG, Ended, kdx, start, wait
from tortures.work import METHODS, command, outcome, told

PROCESSES = 4
COMPUTED, STORED = "device cpu", ": absent"
"""What the log of a folder says once for every process that computed in it, and for every store that it made."""

# Four runs that share teacher and store.
SHARING = ("st-vbd", "kddp", "prune", "ip")


def torture(base: Path, count: int, seed: int) -> dict[str, Any]:
    """So many times four processes at once: how many were killed, waited or found all done, and what differs."""
    chance = random.Random(seed)
    alone = {name: _alone(base / "alone", [name]) for name in METHODS}
    shared = _alone(base / "alone", SHARING)
    counted = ("processes", "killed", "waited", "skipped", "network_rounds")
    figures, failures = dict.fromkeys(counted, 0), list[str]()
    for number in told("several", range(count)):
        same = number % 2 == 0
        names = [chance.choice(list(METHODS))] * PROCESSES if same else list(SHARING)
        expected, seconds = alone[names[0]] if same else shared
        # In every second pair of rounds nobody is killed.
        killed = chance.randint(1, PROCESSES - 1) if number % 4 > 1 else 0
        folder = base / "several"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        network = number % 3 == 2
        ended = _together(folder, names, chance, killed, seconds, _on_a_network if network else _as_usual)
        why = _wrong(folder, names, ended, expected, same=same, killed=killed > 0)
        figures["processes"] += len(ended)
        figures["network_rounds"] += network
        figures["killed"] += sum(each.code == -signal.SIGKILL for each in ended)
        figures["waited"] += sum("waiting for another process" in each.err for each in ended)
        figures["skipped"] += sum("finished before, skipped" in each.err for each in ended)
        if why:
            where = ", on a network" if network else ""
            failures.append(f"{', '.join(dict.fromkeys(names))}, {killed} to be killed{where}: {why}")
    return {"rounds": count, **figures, "failures": failures}


def _alone(folder: Path, names: list[str] | tuple[str, ...]) -> tuple[dict[str, Any], float]:
    """What comes of runs one after another, and how long they take."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    began = time.monotonic()
    ended = kdx([command(name) for name in names], folder, folder / "printed")
    if ended.code:
        raise SystemExit(f"torture: {', '.join(names)} ended with {ended.code}: {ended.err}")
    return outcome(folder / "outputs"), time.monotonic() - began


def _as_usual() -> None:
    pass


def _on_a_network() -> None:
    """Renaming takes its time, and there are neither hard links nor locks."""
    rename = os.replace

    def slow(*paths: Any) -> None:
        time.sleep(0.02)
        rename(*paths)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    os.replace = os.rename = slow
    os.link = fcntl.flock = refuse


def _together(
    folder: Path, names: list[str], chance: random.Random, killed: int, seconds: float, before: Callable[[], None]
) -> list[Ended]:
    """Start all at once, kill some of them at random moments, and wait for the others."""
    captures = [folder / f"printed{number}" for number in range(len(names))]
    children = [start([command(name)], folder, capture, before) for name, capture in zip(names, captures, strict=True)]
    moments = sorted(chance.uniform(0, 1.5 * seconds) for _ in range(killed))
    began = time.monotonic()
    for moment, child in zip(moments, chance.sample(children, killed), strict=True):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        os.kill(child, signal.SIGKILL)
    # All are waited for at the same time, so that the last has the time that it needs for itself.
    return [wait(child, capture, 2 * HUNG) for child, capture in zip(children, captures, strict=True)]


def _wrong(
    folder: Path, names: list[str], ended: list[Ended], expected: dict[str, Any], *, same: bool, killed: bool
) -> str:
    for each in ended:
        if each.hung or each.traceback or each.code not in (0, -signal.SIGKILL):
            return f"hung: {each.hung}, exit code {each.code}: {each.err[-400:]}"
    # Of four with the same teacher those that were killed are continued; of the same run somebody survived.
    if not same:
        again = kdx([command(name) for name in names], folder, folder / "printed")
        if again.code:
            return f"it does not go on: {again.err[-300:]}"
    found = outcome(folder / "outputs")
    differing = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    if differing:
        return f"another result: {', '.join(differing)}"
    logs = {path.parent.name: path.read_text() for path in folder.glob("outputs/runs/**/kdx.log")}
    twice = [name for name, text in logs.items() if text.count(COMPUTED) > 1]
    stores = len(list(folder.glob("outputs/logits/*/manifest.json")))
    if sum(text.count(STORED) for text in logs.values()) > stores:
        twice.append("the store")
    # Whoever takes over from the dead computes in the same folder once more.
    return "" if killed or not twice else f"computed more than once: {', '.join(twice)}"
