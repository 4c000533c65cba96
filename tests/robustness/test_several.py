"""Processes that start the same run, or runs with the same teacher, at the same moment, some of them killed.

Every third time their folder is like that of a bad network disk.
"""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from helpers.forked import HUNG, Ended
from helpers.hurt import METHODS, Outcome, command, differing, finish, move_to_a_network, outcome, run, start

PROCESSES = 4
COMPUTED, STORED = "device cpu", ": absent"
"""What the log of a folder says once for every process that computed in it, and for every store that it made."""

# Four runs that share teacher and store.
SHARING = ("st-vbd", "kddp", "prune", "ip")


def test_of_several_processes_one_computes_and_all_end_alike(
    tmp_path: Path, chance: random.Random, blows: Callable[[int], int], figures: Callable[..., None]
) -> None:
    alone = {name: finish([command(name)], tmp_path / name) for name in METHODS}
    shared = finish([command(name) for name in SHARING], tmp_path / "shared")
    rounds, counted, failures = blows(4), Counter[str](killed=0, waited=0, skipped=0), list[str]()
    for number in range(rounds):
        same = number % 2 == 0
        names = [chance.choice(list(METHODS))] * PROCESSES if same else list(SHARING)
        expected, seconds = alone[names[0]] if same else shared
        # In every second pair of rounds nobody is killed.
        killed = chance.randint(1, PROCESSES - 1) if number % 4 > 1 else 0
        folder = tmp_path / "several"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        network = number % 3 == 2
        ended = _together(folder, names, chance, killed, seconds, network=network)
        why = _wrong(folder, names, ended, expected, same=same, killed=killed > 0)
        counted["network_rounds"] += network
        counted["killed"] += sum(each.code == -signal.SIGKILL for each in ended)
        counted["waited"] += sum("waiting for another process" in each.err for each in ended)
        counted["skipped"] += sum("finished before, skipped" in each.err for each in ended)
        if why:
            where = ", on a network" if network else ""
            failures.append(f"{', '.join(dict.fromkeys(names))}, {killed} to be killed{where}: {why}")
    figures("several", rounds=rounds, processes=rounds * PROCESSES, **counted, failures=failures)
    assert counted["waited"] > 0
    assert counted["skipped"] > 0


def _together(
    folder: Path, names: Sequence[str], chance: random.Random, killed: int, seconds: float, *, network: bool
) -> list[Ended]:
    """Start all at once, kill some of them at random moments, and wait for the others."""
    before = (move_to_a_network,) if network else ()
    captures = [folder.with_name(f"printed{number}") for number in range(len(names))]
    pairs = zip(names, captures, strict=True)
    children = [start([command(name)], folder, *before, capture=capture) for name, capture in pairs]
    moments = sorted(chance.uniform(0, 1.5 * seconds) for _ in range(killed))
    began = time.monotonic()
    for moment, child in zip(moments, chance.sample(children, killed), strict=True):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        child.kill()
    # All are waited for at the same time, so that the last has the time that it needs for itself.
    return [child.wait(2 * HUNG) for child in children]


def _wrong(
    folder: Path, names: Sequence[str], ended: Sequence[Ended], expected: Outcome, *, same: bool, killed: bool
) -> str:
    for each in ended:
        killed_here = each.code == -signal.SIGKILL and not each.hung
        if not killed_here and (each.code or each.wrong()):
            return f"hung: {each.hung}, exit code {each.code}: {each.err[-400:]}"
    # Of four with the same teacher those that were killed are continued; of the same run somebody survived.
    if not same:
        again = run([command(name) for name in names], folder)
        if again.code:
            return f"it does not go on: {again.err[-300:]}"
    if why := differing(outcome(folder / "outputs"), expected):
        return why
    logs = {path.parent.name: path.read_text() for path in folder.glob("outputs/runs/**/kdx.log")}
    twice = [name for name, text in logs.items() if text.count(COMPUTED) > 1]
    stores = len(list(folder.glob("outputs/logits/*/manifest.json")))
    if sum(text.count(STORED) for text in logs.values()) > stores:
        twice.append("the store")
    # Whoever takes over from the dead computes in the same folder once more.
    return "" if killed or not twice else f"computed more than once: {', '.join(twice)}"
