"""Whether this Python can do what scripts/gpu_check wants of it: every package that is absent or too old, at once.

Nothing is imported but what may be there. The exit code is 2 where something cannot be imported or there is no NVIDIA
GPU. A package that does not fit but is not needed after all is only told.
"""

import platform
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
# --session-timeout is as old as that.
TESTING = ("pytest>=8", "pytest-timeout>=2.3")
MODULES = (
    *(
        "kdx.cli.main",
        "kdx.experiment",
        "kdx.cli.train",
        "kdx.sweep.fused_runs",
        "kdx.sweep.multirun",
        "pytest",
        "pytest_timeout",
    ),
    *("hydra_plugins.kdx_launchers", "hydra_plugins.hydra_joblib_launcher", "benchmarks.gpu", "benchmarks.gpu_worker"),
)
# What these need came with them, in whatever way: an image may have CUDA's libraries without Python's metadata.
COMPLETE = {"torch", "torchvision"}

Found = tuple[str, list[str]]
"""The version of an installed package, and what it requires."""


def main() -> int:
    """Say what is there and what is not."""
    failures = {name: error for name in MODULES if (error := failure_of(name))}
    lacking = unfit(requirements(), installed, pins())
    for package, what in lacking.items():
        say(f"{package}: {what}")
    for name, error in failures.items():
        say(f"{name} cannot be imported: {error}")
    if failures:
        say(f"{sys.executable} lacks what stands above; scripts/gpu_check --help says how to bring it")
        return 2
    import torch

    if not torch.cuda.is_available():
        say("there is no NVIDIA GPU here, or torch does not see it")
        return 2
    properties = torch.cuda.get_device_properties(0)
    say(
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute capability {properties.major}."
        f"{properties.minor}; torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN"
        f" {torch.backends.cudnn.version()}; Python {platform.python_version()}"
    )
    return 0


def say(line: str) -> None:
    """Print a line of the script."""
    print(f"gpu_check: {line}", file=sys.stderr)


def failure_of(module: str) -> str | None:
    """Why it cannot be imported, in one line; None where it can."""
    try:
        import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def requirements() -> list[str]:
    """What kdx needs at run time, and its tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *TESTING]


def pins() -> dict[str, str]:
    """The versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def installed(package: str) -> Found | None:
    """What is there of a package, or None."""
    try:
        return metadata.version(package), metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return None


def unfit(wanted: Iterable[str], installed: Callable[[str], Found | None], pins: dict[str, str]) -> dict[str, str]:
    """Every package, at any depth, that is absent or has a version that another one does not admit, with what it is."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return {"packaging": "absent, so that no version can be compared"}
    due, found, seen = [(text, "kdx") for text in wanted], {}, set()
    while due:
        text, by = due.pop(0)
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        there = installed(name)
        needed = f"{by} needs {requirement.name}{requirement.specifier}"
        if there is None:
            found.setdefault(name, f"absent; {needed}, of which {pins.get(name, 'any')} was tested")
        elif not requirement.specifier.contains(there[0], prereleases=True):
            found.setdefault(name, f"{there[0]} is there; {needed}")
        if there is not None and name not in seen | COMPLETE:
            due += [(each, name) for each in there[1]]
        seen.add(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
