"""Cores shared with other programs: how many threads this process has, and how they wait for each other."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from kdx.errors import UserError
from kdx.machine import usable_cores

SPIN, SPINS = "GOMP_SPINCOUNT", "1000"
"""libgomp's variable, and how often its threads spin before they sleep: some 15 to 50 microseconds."""
POLICY = "OMP_WAIT_POLICY"
STAT = Path("/proc/stat")
SHORTEST = 0.5
"""The system counts in ticks of 10 ms, too coarse for fewer seconds."""


def share_cores() -> None:
    """Let this process's threads sleep after waiting for each other for a moment, instead of spinning.

    Must be called before torch is imported, whose OpenMP runtime (libgomp) reads the setting once. By default a thread
    spins for many milliseconds, which is fastest on an idle machine. But beside another program, even one that starts
    later, a thread spins away the time that the thread it waits for would need, and a small network takes 70 times as
    long with two threads. With short spinning, training takes a third longer on an idle machine, and at most 2.4 times
    as long on a busy one; the results are the same. A user's own OMP_WAIT_POLICY or GOMP_SPINCOUNT is left as it is.
    """
    if POLICY not in os.environ:
        os.environ.setdefault(SPIN, SPINS)


def check_threads(threads: int | None) -> None:
    """Raise UserError for more threads than cores, since they would wait for each other; None is always allowed.

    Called again when a run starts, since its configuration may come from a larger machine.
    """
    cores = usable_cores()
    if threads is not None and threads > cores:
        here = "1 core; allowed: 1" if cores == 1 else f"{cores} cores; allowed: 1 to {cores}"
        raise UserError(f"device.threads: {threads} is not allowed where this process may use {here}, null")


def waiting() -> str:
    """How threads wait for each other, according to the environment variables."""
    return ", ".join(f"{name}={os.environ[name]}" for name in (POLICY, SPIN) if name in os.environ) or "they like"


def taken_elsewhere() -> Callable[[], float | None]:
    """Start watching the cores; the returned function gives how many of them other programs took since, on average.

    It returns None if the system does not tell, and within the first half second.
    """
    start, own, busy = time.perf_counter(), time.process_time(), _busy()

    def cores() -> float | None:
        seconds, since = time.perf_counter() - start, _busy()
        if busy is None or since is None or seconds < SHORTEST:
            return None
        return max(since - busy - (time.process_time() - own), 0.0) / seconds

    return cores


def _busy() -> float | None:
    """The seconds that the cores of this process were busy, or lent to another virtual machine, since boot."""
    try:
        cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in STAT.read_text().splitlines()]
        # The fields of proc(5)'s stat: user, nice, system, idle, iowait, irq, softirq, steal.
        ticks = [sum(int(line[field]) for field in (1, 2, 3, 6, 7, 8)) for line in lines if line[0] in cores]
        return sum(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None
