"""What tests of both kinds share: the real command line, in a folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Kdx = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kdx(tmp_path: Path) -> Kdx:
    """Run `kdx WORDS` in `tmp_path`, from which its outputs hang; returns code, stdout and stderr."""

    def run(
        *words: str, timeout: float = 600, python: Sequence[str] = ("-m", "kdx"), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if name != "KDX_OUTPUTS"}
        if "KDX_DATA" in inherited:
            inherited["KDX_DATA"] = str(Path(inherited["KDX_DATA"]).resolve())
        return subprocess.run(
            [sys.executable, *python, *words],
            cwd=tmp_path,
            env={**inherited, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
