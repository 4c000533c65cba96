"""`kdx WORDS` in forked processes: the seconds of imports are spent once, so that the tests' time is that of kdx."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = [
    *("kdx.cli.main", "kdx.cli.train", "kdx.cli.table", "kdx.cli.plot", "kdx.cli.export"),
    *("kdx.experiment", "kdx.methods", "kdx.export", "kdx.cli.run_tables", "kdx.cli.report"),
    *("kdx.cli.reproduce", "kdx.reproduce.run", "kdx.data.digits", "hydra._internal", "torch._dynamo"),
    # What jinja2 and Hydra load on the way; a child that became another user may not read Python's own files.
    *("encodings.unicode_escape", "importlib.readers", "sklearn.datasets"),
]
HUNG = 120.0
"""Seconds after which a command that should take a few counts as hung."""

Before = Callable[[], None]


def environment(**more: str) -> dict[str, str]:
    """That of this process, but for the folder of its outputs."""
    inherited = {name: value for name, value in os.environ.items() if name != "KDX_OUTPUTS"}
    if "KDX_DATA" in inherited:
        inherited["KDX_DATA"] = str(Path(inherited["KDX_DATA"]).resolve())
    return {**inherited, **more}


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

    def wrong(self) -> str:
        """What no command may do, whatever befalls it; empty where it did not."""
        if self.hung:
            return "it hung"
        if "Traceback (most recent call last)" in self.err + self.out:
            return f"a traceback: {self.err[-600:]}"
        return "" if self.code in (0, 1, 2) else f"exit code {self.code}: {self.err[-300:]}"


class Child:
    """A process that runs commands in `base`, one after another until one fails, with `variables` as environment.

    What they print goes to files in `capture`. `before` are functions of importable modules; they are called in the
    process when those files are open.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        base: Path,
        capture: Path,
        variables: dict[str, str],
        before: Sequence[Before] = (),
    ) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        capture.mkdir(exist_ok=True)
        self.capture = capture
        self.process: BaseProcess = context.Process(target=_run, args=(commands, base, capture, variables, before))
        self.process.start()

    def kill(self) -> None:
        """As the kernel does it, with SIGKILL."""
        self.process.kill()

    def wait(self, seconds: float = HUNG) -> Ended:
        """Wait for the end, at most so long, and read what was printed."""
        self.process.join(seconds)
        hung = self.process.exitcode is None
        if hung:
            self.process.kill()
            self.process.join()
        files = [self.capture / name for name in ("out", "err", "ran")]
        out, err, ran = (path.read_text(encoding="utf-8", errors="replace") if path.exists() else "" for path in files)
        return Ended(self.process.exitcode or 0, out, err, hung, len(ran))


def _run(
    commands: Sequence[Sequence[str]], base: Path, capture: Path, variables: dict[str, str], before: Sequence[Before]
) -> None:
    assert "torch" in sys.modules, "the server has imported nothing"
    os.chdir(base)
    os.environ.clear()
    os.environ.update(variables)
    out, err, ran = (os.open(capture / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err", "ran"))
    os.dup2(out, 1)
    os.dup2(err, 2)
    for each in before:
        each()
    from kdx.cli.main import main

    for words in commands:
        sys.argv = ["kdx", *words]
        code = main()
        if code:
            sys.exit(code)
        os.write(ran, b".")
