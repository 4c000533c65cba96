"""Worker processes as seen from the benchmark: started, told to run an epoch, and stopped while others run."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from benchmarks.work import Order


class WorkerFailed(RuntimeError):
    """A worker process ended by itself; the message has the end of its log."""


class Worker:
    """One worker process. Between epochs it is stopped, so that none of its threads spins while others are timed."""

    def __init__(self, order: Order, cache: Path) -> None:
        """Start it and wait until all is loaded; `cache` is its folder of compiled code."""
        self._log = Path(order.outputs, f"{order.job}-{order.variant}.log")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(str(folder) for folder in Path(__file__).parents[1:3]),
            "TORCHINDUCTOR_CACHE_DIR": str(cache),
        }
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmarks.worker", json.dumps(asdict(order))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                # A group of its own, so that Ctrl-C is for the benchmark, which then ends its workers; and in our
                # session, so that the system hangs up on a stopped worker when the benchmark dies, however it does.
                process_group=0,
            )
        try:
            self.facts = self._reply()
        except BaseException:
            self.close()
            raise
        self._process.send_signal(signal.SIGSTOP)

    def epoch(self) -> float:
        """Let it train for one epoch; the seconds that took."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        print("go", file=self._process.stdin, flush=True)
        seconds = self._reply()["seconds"]
        self._process.send_signal(signal.SIGSTOP)
        return seconds

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"a worker ended; its log ends with\n{self._log.read_text()[-2000:]}")
        return json.loads(line)
