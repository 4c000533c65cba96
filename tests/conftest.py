"""What tests of both kinds share: the real command line, in a folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.forked import forked_kdx
from helpers.typed import typed

Kdx = Callable[..., subprocess.CompletedProcess[str]]
TIMEOUT = 600.0


def _environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "KDX_OUTPUTS"}
    if "KDX_DATA" in inherited:
        inherited["KDX_DATA"] = str(Path(inherited["KDX_DATA"]).resolve())
    return {**inherited, **more}


@pytest.fixture
def kdx(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Kdx:
    """Run `kdx WORDS` in `tmp_path`, from which its outputs hang; returns code, stdout and stderr.

    Of two words with one key the last is typed.
    """
    printed = tmp_path_factory.mktemp("printed")

    def run(*words: str, timeout: float = TIMEOUT, **environment: str) -> subprocess.CompletedProcess[str]:
        return forked_kdx(typed(words), tmp_path, printed, _environment(**environment), timeout)

    return run


@pytest.fixture
def started_kdx(tmp_path: Path) -> Kdx:
    """The same in an interpreter that is started anew, as a shell does it; `python` are its first words."""

    def run(
        *words: str, timeout: float = TIMEOUT, python: Sequence[str] = ("-m", "kdx"), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *python, *typed(words)],
            cwd=tmp_path,
            env=_environment(PYTHONPATH=str(ROOT)) | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
