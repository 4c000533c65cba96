"""Runs that are killed at random moments and continued end as if nothing had happened, bit for bit."""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from helpers.hurt import METHODS, command, differing, export, finish, phase, start


def test_killed_runs_end_as_if_nothing_had_happened(
    tmp_path: Path, chance: random.Random, blows: Callable[[int], int], figures: Callable[..., None]
) -> None:
    kills, trees, failures, phases = blows(6), 0, list[str](), Counter[str]()
    folder = tmp_path / "killed"
    for number, name in enumerate(METHODS):
        commands = [command(name), export(name)]
        expected, seconds = finish(commands, tmp_path / name)
        left = kills * (number + 1) // len(METHODS) - kills * number // len(METHODS)
        while left:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            # Some kills on the way, then the end.
            for _ in range(min(chance.randint(1, 6), left)):
                child = start(commands, folder)
                time.sleep(chance.uniform(0, 0.7 * seconds))
                where = phase(folder)
                child.kill()
                if child.wait().code != -signal.SIGKILL:
                    break
                phases[where] += 1
                left -= 1
            found, _ = finish(commands, folder)
            trees += 1
            if why := differing(found, expected):
                failures.append(f"{name}: {why}")
    assert phases.total() == kills
    figures("kill", kills=kills, trees=trees, killed_while=phases, failures=failures)
