"""kdx in a forked process: torch is imported once, so that what is tortured is kdx and not the imports."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

HUNG = 120.0
"""Seconds after which a command that should take a few counts as hung."""


@dataclass(frozen=True)
class Ended:
    """How commands ended: exit code (negative: the signal), what they printed, whether they had to be stopped.

    `ran` counts those that ended well.
    """

    code: int
    out: str
    err: str
    hung: bool
    ran: int

    @property
    def traceback(self) -> bool:
        """Whether the user was shown a traceback."""
        return "Traceback (most recent call last)" in self.err + self.out


def prepare() -> None:
    """Import what commands import when they are needed, so that no child has to; children inherit what is set here."""
    for module in (
        "kdx.cli",
        "kdx.experiment",
        "kdx.export",
        "kdx.report.table",
        "kdx.report.page.command",
        "kdx.reproduce.command",
        "kdx.reproduce.fused",
        # Which jinja2 loads when it compiles; a child that became another user may not read Python's own files.
        "encodings.unicode_escape",
        "sklearn.datasets",
        "hydra._internal",
    ):
        import_module(module)
    # Whatever could come out otherwise the next time is an error.
    import_module("torch").use_deterministic_algorithms(True)
    # A small run would otherwise write few checkpoints, and few kills would hit one.
    import_module("kdx.trainer").CHECKPOINT_SHARE = 1


def start(words: Sequence[Sequence[str]], base: Path, capture: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run commands one after another in a child that works in `base`, until one fails; give its process number.

    `before` is called in the child, when the files for what it prints are open.
    """
    child = os.fork()
    if not child:
        _run(words, base, capture, before)
    return child


def wait(child: int, capture: Path, seconds: float = HUNG) -> Ended:
    """Wait for a child, at most so long, and read what it printed."""
    end = time.monotonic() + seconds
    hung = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end and not hung:
            hung = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    texts = [capture.with_suffix(suffix).read_text(errors="replace") for suffix in (".out", ".err")]
    return Ended(os.waitstatus_to_exitcode(status), *texts, hung, capture.with_suffix(".ran").stat().st_size)


def kdx(words: Sequence[Sequence[str]], base: Path, capture: Path, before: Callable[[], None] = lambda: None) -> Ended:
    """Run commands to their end."""
    return wait(start(words, base, capture, before), capture)


def _run(words: Sequence[Sequence[str]], base: Path, capture: Path, before: Callable[[], None]) -> NoReturn:
    code = 70
    # Whatever happens, a child never goes on as a second parent.
    with suppress(BaseException):
        os.chdir(base)
        for number, suffix in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(capture.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        ran = os.open(capture.with_suffix(".ran"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        before()
        from kdx.cli import main

        for command in words:
            code = main(list(command))
            if code:
                break
            os.write(ran, b".")
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
