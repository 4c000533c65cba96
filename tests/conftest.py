"""What tests of both kinds share: the real command line, in a folder of its own."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.forked import Child, environment
from helpers.typed import typed

Kdx = Callable[..., subprocess.CompletedProcess[str]]
TIMEOUT = 600.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Those of tests/robustness, which pytest asks for before it looks there."""
    parser.addoption("--blows", type=int, help="how often each test of tests/robustness hurts kdx; else a few times")
    parser.addoption("--figures", type=Path, help="a JSON file in which they write down what came out")


@pytest.fixture
def kdx(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Kdx:
    """Run `kdx WORDS` in `tmp_path`, from which its outputs hang; returns code, stdout and stderr.

    Of two words with one key the last is typed.
    """
    printed = tmp_path_factory.mktemp("printed")

    def run(*words: str, timeout: float = TIMEOUT, **variables: str) -> subprocess.CompletedProcess[str]:
        words = tuple(typed(words))
        ended = Child([words], tmp_path, printed, environment(**variables)).wait(timeout)
        if ended.hung:
            raise subprocess.TimeoutExpired(["kdx", *words], timeout)
        return subprocess.CompletedProcess(["kdx", *words], ended.code, ended.out, ended.err)

    return run


@pytest.fixture
def started_kdx(tmp_path: Path) -> Kdx:
    """The same in an interpreter that is started anew, as a shell does it; `python` are its first words."""

    def run(
        *words: str, timeout: float = TIMEOUT, python: Sequence[str] = ("-m", "kdx"), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *python, *typed(words)],
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(ROOT)) | variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
