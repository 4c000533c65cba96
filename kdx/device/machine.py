"""A description of the machine, recorded with every result."""

import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kdx
from kdx.errors import UserError
from kdx.storage.files import source_sha256

QUIET_LOAD = 0.5


def describe_machine() -> dict[str, Any]:
    """Processor, number of cores, software versions, load and date."""
    import torch  # imported here, so that a mistake on the command line is reported first

    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kdx": kdx.__version__,
        "commit": commit(),
        "load_average": os.getloadavg()[0],
        "date": now(),
    }


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, with family and model number if the system tells them, since clouds hide the name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in fields:
        return platform.machine()
    return f"{fields['model name']} family {fields.get('cpu family')} model {fields.get('model')}"


def peak_rss_bytes() -> int:
    """The process's peak resident memory so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts kilobytes


def slug(name: str) -> str:
    """A processor's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def now() -> str:
    """The date and time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def kdx_source() -> str:
    """Twelve digits of the SHA-256 of kdx's modules, which distinguish a modified checkout."""
    return source_sha256([Path(kdx.__file__).parent])[:12]


def commit() -> str | None:
    """The commit of a checkout, with -dirty if files are modified (results under outputs do not count); else None."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # A virtual environment inside another project's checkout is no checkout of kdx.
        _output([*git, "ls-files", "--error-unmatch", Path(__file__).name])
        name = _output([*git, "describe", "--always"])
        changed = _output([*git, "diff", "--name-only", "HEAD", "--", ":/", ":(top,exclude)outputs"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}-dirty" if changed else name


def _output(words: list[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


SPIN, SPINS = "GOMP_SPINCOUNT", "1000"
"""libgomp's variable, and how often its threads spin before they sleep: some 15 to 50 microseconds."""
POLICY = "OMP_WAIT_POLICY"
STAT = Path("/proc/stat")
SHORTEST = 0.5
"""The system counts in ticks of 10 ms, too coarse for fewer seconds."""


def set_omp_wait_policy() -> None:
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


def cores_taken_by_others() -> Callable[[], float | None]:
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
