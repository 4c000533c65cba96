"""Machines with other work: how this process's threads wait for each other there."""

import os
import time
from collections.abc import Callable
from pathlib import Path

SAMPLES, GAP = 5, 0.01
"""Looks at who is running, and the seconds between them: what runs but now and then is not there in all of them."""
POLICY = "OMP_WAIT_POLICY"
LOADAVG, STAT = Path("/proc/loadavg"), Path("/proc/stat")
SHORTEST = 0.5
"""Of fewer seconds the system's clock ticks of 10 ms say too little."""


def wait_for_cores() -> None:
    """Let this process's threads sleep while they wait for each other, if other work leaves no core for each of them.

    To be called before torch is imported, which reads the choice once. By itself it lets threads spin, which is right
    where they have the cores to themselves. Where they have not, a thread spins away the time that the one it waits
    for would need: a step of LeNet-300-100 with two threads beside two other programs on two cores took over 100 ms,
    with sleeping threads 3 ms; alone on the machine 1.6 and 3.3 ms. The arithmetic is the same. Who has set
    OMP_WAIT_POLICY keeps it.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if threads > 1 and POLICY not in os.environ and running_elsewhere() > (os.cpu_count() or 1) - threads:
        os.environ[POLICY] = "passive"


def running_elsewhere() -> int:
    """How many threads of other programs are running or ready to run; 0 where the system does not say."""
    return min(_running() for _ in range(SAMPLES))


def _running() -> int:
    time.sleep(GAP)
    try:
        # The fourth field of proc(5)'s loadavg: threads that can run now, this one among them, of all.
        return max(int(LOADAVG.read_text().split()[3].partition("/")[0]) - 1, 0)
    except (OSError, IndexError, ValueError):
        return 0


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
