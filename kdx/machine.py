"""The machine that the figures belong to."""

import os
import platform
import re
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kdx
from kdx.files import source_sha256

QUIET_LOAD = 0.5


def describe_machine() -> dict[str, Any]:
    """Processor, cores, versions, load and date."""
    import torch  # here, so that a mistake on the command line is told before it is imported

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
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name; clouds hide it, so family and model number go with it where the system tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in fields:
        return platform.machine()
    return f"{fields['model name']} family {fields.get('cpu family')} model {fields.get('model')}"


def peak_rss_bytes() -> int:
    """The most resident memory that the process had since it was started, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts kilobytes


def slug(name: str) -> str:
    """A processor's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def now() -> str:
    """The date and time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def kdx_source() -> str:
    """Twelve digits of the SHA-256 of kdx's own modules, which tell a changed checkout from another."""
    return source_sha256([Path(kdx.__file__).parent])[:12]


def commit() -> str | None:
    """The commit of a checkout, with -dirty where its files are others; results, which kdx writes, do not count."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # An environment inside somebody's checkout is no checkout of kdx.
        _output([*git, "ls-files", "--error-unmatch", Path(__file__).name])
        name = _output([*git, "describe", "--always"])
        changed = _output([*git, "diff", "--name-only", "HEAD", "--", ":/", ":(top,exclude)outputs"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}-dirty" if changed else name


def _output(words: list[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
