"""`kdx WORDS` in a forked process: its seconds of imports are spent once, so that the tests' time is that of kdx."""

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = [
    *("kdx.cli", "kdx.commands.train", "kdx.commands.table", "kdx.commands.plot", "kdx.commands.export"),
    *("kdx.experiment", "kdx.procedures", "kdx.export", "kdx.report.table", "kdx.report.page.command"),
    *("kdx.reproduce.command", "kdx.reproduce.fused", "kdx.data.digits", "hydra._internal", "torch._dynamo"),
]


def forked_kdx(
    words: Sequence[str], base: Path, capture: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run `kdx WORDS` in `base`, with `environment` instead of the test's; raises subprocess.TimeoutExpired."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    capture.mkdir(exist_ok=True)
    out, err = capture / "out", capture / "err"
    process: BaseProcess = context.Process(target=_run, args=(words, base, out, err, environment))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired(["kdx", *words], timeout)
    return subprocess.CompletedProcess(
        ["kdx", *words], process.exitcode, *(path.read_text(encoding="utf-8") for path in (out, err))
    )


def _run(words: Sequence[str], base: Path, out: Path, err: Path, environment: dict[str, str]) -> None:
    assert "torch" in sys.modules, "the server has imported nothing"
    os.chdir(base)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate((out, err), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["kdx", *words]
    from kdx.cli import main

    sys.exit(main())
