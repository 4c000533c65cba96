"""Machines with other work: how many threads this process has, and how they wait for each other."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from kdx.errors import UserError
from kdx.machine import usable_cores

SPIN, SPINS = "GOMP_SPINCOUNT", "1000"
"""libgomp's variable, and how often its threads look before they sleep: some 15 to 50 microseconds."""
POLICY = "OMP_WAIT_POLICY"
STAT = Path("/proc/stat")
SHORTEST = 0.5
"""Of fewer seconds the system's clock ticks of 10 ms say too little."""


def share_cores() -> None:
    """Let this process's threads sleep when they have waited for each other for a moment.

    To be called before torch is imported, whose OpenMP runtime (libgomp) reads the choice once. By itself it lets a
    thread spin for many milliseconds, which is best for as long as nobody else works. But as soon as another program
    does, even one that comes later, a thread spins away the time that the one it waits for would need, and the two
    threads of a small network do a training in 70 times its time. A thread that spins for a moment only takes a third
    more time where the machine is quiet and at most 2.4 times where it is not; the arithmetic is the same. Who has set
    OMP_WAIT_POLICY or GOMP_SPINCOUNT keeps it.
    """
    if POLICY not in os.environ:
        os.environ.setdefault(SPIN, SPINS)


def check_threads(threads: int | None) -> None:
    """Raise UserError for more threads than there are cores for them: each would wait for the others to get a turn.

    To be asked where a run starts, since its configuration may come from a larger machine; None is always allowed.
    """
    cores = usable_cores()
    if threads is not None and threads > cores:
        here = "1 core; allowed: 1" if cores == 1 else f"{cores} cores; allowed: 1 to {cores}"
        raise UserError(f"device.threads: {threads} is not allowed where this process may use {here}, null")


def waiting() -> str:
    """How threads wait, as the environment says."""
    return ", ".join(f"{name}={os.environ[name]}" for name in (POLICY, SPIN) if name in os.environ) or "they like"


def taken_elsewhere() -> Callable[[], float | None]:
    """Watch from now on; what comes back says how many of this process's cores others have taken since, on average.

    It gives None where the system does not say, and within the first half second.
    """
    start, own, busy = time.perf_counter(), time.process_time(), _busy()

    def cores() -> float | None:
        seconds, since = time.perf_counter() - start, _busy()
        if busy is None or since is None or seconds < SHORTEST:
            return None
        return max(since - busy - (time.process_time() - own), 0.0) / seconds

    return cores


def _busy() -> float | None:
    """The seconds that the cores of this process were busy, or lent to another machine, since the system began."""
    try:
        cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in STAT.read_text().splitlines()]
        # The fields of proc(5)'s stat: user, nice, system, idle, iowait, irq, softirq, steal.
        ticks = [sum(int(line[field]) for field in (1, 2, 3, 6, 7, 8)) for line in lines if line[0] in cores]
        return sum(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None
