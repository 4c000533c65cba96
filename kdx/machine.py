"""A description of the machine, recorded with every result."""

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
