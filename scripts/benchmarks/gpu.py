"""Training on an NVIDIA GPU: eager, captured, in bfloat16, compiled, many at once, and the usual way.

Every job runs in a worker process. A way that fails or takes too long is reported with its reason, and the others go
on; the file is written anew after each. Data sets that are not there are replaced by random bytes of the same shape.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gpu_work import TITLES, USUAL, WAYS, Order
from benchmarks.train import chosen, say
from kdx import console, formatting
from kdx.device.machine import describe_machine, slug
from kdx.errors import UserError
from kdx.storage.files import write_json

# What is measured, the most important first: when the time is over, the rest is left out.
PLAN = [
    ("kd", ["graph", "graph-bf16", "eager", USUAL, "fused"]),
    ("st-vbd", ["graph", "graph-bf16", "eager", USUAL]),
    ("nin", ["graph-bf16", "graph", "graph-tf32", "eager", USUAL]),
    ("vgg19", ["graph-bf16", "graph", "eager", USUAL]),
    ("t1", ["graph", "graph-bf16", "eager", USUAL]),
    ("kddp", ["graph", "graph-bf16", "eager", USUAL]),
    ("kd", ["compiled"]),
    ("st-vbd", ["compiled", "fused"]),
    ("nin", ["compiled-bf16"]),
    ("kd", ["compiled-bf16", "fused-compiled"]),
    ("st-vbd", ["compiled-bf16"]),
]
# Beside its own seconds a way starts, loads, captures or compiles within these; nobody waits for a trial on a CPU.
STARTING, COMPILING = {"cuda": 60.0, "cpu": 600.0}, 90.0
# So many of the last characters of a worker's log are kept where it was given up.
LOG = 3000
LIMITS = {
    "ST-VBD of Le-L, 100 epochs, s": 15.0,
    "KD of Le-L, 100 epochs, s": 6.0,
    "64 students of KD together, times the time of one": 4.0,
    "NIN in bf16, share of the rate of its own convolutions": 0.35,
}
Jobs = dict[str, dict[str, dict[str, Any]]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `scripts/benchmark gpu`."""
    parser.add_argument("--jobs", default=",".join(TITLES), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--ways", default=",".join(WAYS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=300, help="for everything (default: %(default)s)")
    parser.add_argument("--way-seconds", type=float, default=4, help="for one way of a job (default: %(default)s)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu is for trying the script")
    parser.add_argument(
        "--tiny", action="store_true", help="synthetic data, narrow networks: to try it, not to measure"
    )
    parser.add_argument("--output", type=Path, help="the JSON file (default: outputs/benchmarks/GPU.json)")


def run(options: argparse.Namespace) -> None:
    """Measure, writing the file after every way, and print the tables."""
    started = time.monotonic()
    jobs, ways = chosen("--jobs", options.jobs, TITLES), chosen("--ways", options.ways, WAYS)
    name = device_name(options.device)
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "remark": _remark(options),
        "device": name,
        "machine": describe_machine(),
        "options": {key: value for key, value in vars(options).items() if key not in ("output", "subcommand")},
        "jobs": {job: {} for job in jobs},
        "targets": [],
    }
    output = options.output or _default_output(options, name)
    with TemporaryDirectory() as folder:
        for job, every in PLAN:
            planned = [way for way in every if way in ways]
            if job not in jobs or not planned:
                continue
            order = Order(job, planned, options.device, options.way_seconds, options.tiny, folder)
            for way, figures in _measured(order, started + options.seconds):
                result["jobs"][job][way] = figures
                # A trial meets no target, and misses none.
                result["targets"] = [] if result["remark"] else targets(result["jobs"])
                say(f"{TITLES[job]}: {WAYS[way]}: {_brief(figures)}")
                if output is not None:
                    output.parent.mkdir(parents=True, exist_ok=True)
                    write_json(output, result)
    show(result)
    if output is not None:
        print(output)


def device_name(device: str) -> str:
    """The GPU's name; UserError where there is none."""
    import torch

    if device == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(
            "there is no NVIDIA GPU here, or torch does not see it; allowed: --device cpu, to try the script"
        )
    return torch.cuda.get_device_name()


def targets(jobs: Jobs) -> list[dict[str, Any]]:
    """What was aimed at, with the best that was measured; None where it was not."""

    def best(job: str, key: str, ways: list[str]) -> float | None:
        found = [jobs.get(job, {}).get(way, {}).get(key) for way in ways]
        return min((each for each in found if each is not None), default=None)

    single = ["graph", "graph-bf16", "compiled", "compiled-bf16"]
    alone, together = best("kd", "seconds_per_epoch", ["graph"]), best("kd", "seconds_per_epoch", ["fused"])
    shares = [jobs.get("nin", {}).get(way, {}).get("of_own_products") for way in ("graph-bf16", "compiled-bf16")]
    values = [
        best("st-vbd", "seconds_per_100_epochs", single),
        best("kd", "seconds_per_100_epochs", single),
        together / alone if alone and together else None,
        max((each for each in shares if each is not None), default=None),
    ]
    return [
        {
            "target": name,
            "limit": limit,
            "measured": value,
            "met": None if value is None else (value >= limit if limit < 1 else value <= limit),
        }
        for (name, limit), value in zip(LIMITS.items(), values, strict=True)
    ]


def _measured(order: Order, end: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each way with its figures or with the reason why there are none.

    A worker in which a way failed is replaced: a capture that broke leaves torch's generators and allocator in the
    middle of it, and after some errors of CUDA nothing else works in the same process.
    """
    left = list(order.ways)
    while left:
        if end - time.monotonic() < order.seconds:
            yield from ((way, {"failed": "left out: the time of --seconds is over"}) for way in left)
            return
        with _Worker(replace(order, ways=left)) as worker:
            for way in list(left):
                allowed = STARTING[order.device] + (COMPILING if "compiled" in way else 0.0) + 3 * order.seconds_of(way)
                figures = worker.result(min(allowed, max(order.seconds, end - time.monotonic())))
                left.remove(way)
                yield way, figures
                if "failed" in figures:
                    break


class _Worker:
    """A worker process, whose replies are awaited for some time only."""

    def __init__(self, order: Order) -> None:
        self._log = Path(order.outputs, f"{order.job}.log")
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmarks.gpu_worker", json.dumps(asdict(order))],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join([*map(str, Path(__file__).parents[1:3]), *_python_path()])},
                process_group=0,
            )
        self._replies: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def result(self, seconds: float) -> dict[str, Any]:
        """The figures of the way that it is at, or why there are none."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._replies.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return self._given_up(f"not done within {seconds:.0f} s")
            if not line:
                return self._given_up(f"the process ended: {self._log.read_text()[-300:].strip()}")
            content = json.loads(line)
            if "result" in content:
                return content["result"]

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _given_up(self, reason: str) -> dict[str, Any]:
        self._end()
        return {"failed": " ".join(reason.split()), "log": self._log.read_text()[-LOG:]}

    def _end(self) -> None:
        if self._process.poll() is None:
            # Its loader's workers too: they are of its group.
            os.killpg(self._process.pid, 9)
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put("")


def _python_path() -> list[str]:
    return [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]


def _remark(options: argparse.Namespace) -> str | None:
    """Why the figures are no measurement, or None where they are one."""
    reasons = ["on the CPU"] * (options.device == "cpu") + ["tiny networks and synthetic data"] * options.tiny
    return "; ".join(reasons) or None


def _default_output(options: argparse.Namespace, name: str) -> Path | None:
    if _remark(options):
        return None
    return Path(os.environ.get("KDX_OUTPUTS", "outputs"), "benchmarks", f"{slug(name)}.json")


def _brief(figures: dict[str, Any]) -> str:
    return figures.get("failed") or f"{1000 * figures['seconds_per_step']:.3f} ms a step"


def show(result: dict[str, Any]) -> None:
    """Print the machine, one table per job, the failures and the targets."""
    screen, machine = console.console(), result["machine"]
    screen.print(f"{result['device']}; {machine['cpu']}, {machine['cores']} cores; {machine['system']}")
    screen.print(f"torch {machine['torch']}, Python {machine['python']}, kdx {machine['kdx']} ({machine['commit']})")
    screen.print(f"load average {machine['load_average']:.2f} before, {machine['date']}")
    if result["remark"]:
        console.warn(screen, f"no measurement: {result['remark']}")
    for job, ways in result["jobs"].items():
        if ways:
            _show_job(screen, TITLES[job], ways)
    screen.print(
        "s/100: a run of 100 epochs with its evaluations, extrapolated where they were not all trained.", style="dim"
    )
    screen.print("peak: one large product's rate; own: the student's own products and convolutions alone.", style="dim")
    for each in result["targets"]:
        measured = "not measured" if each["measured"] is None else f"{each['measured']:.2f}"
        verdict = {True: "met", False: "missed", None: "-"}[each["met"]]
        screen.print(f"{each['target']}: {measured}, limit {each['limit']:g}: {verdict}")


def _show_job(screen: Any, title: str, ways: dict[str, dict[str, Any]]) -> None:
    headers = ("ms/step", "s/epoch", "s/100", "TFLOP/s", "of peak", "of own", "x usual")
    content = console.table(console.words(""), *(console.numbers(header) for header in headers))
    usual = ways.get(USUAL, {}).get("seconds_per_epoch")
    measured = {way: ways[way] for way in WAYS if "seconds_per_step" in ways.get(way, {})}
    for way, figures in measured.items():
        content.add_row(
            WAYS[way],
            f"{1000 * figures['seconds_per_step']:.3f}",
            f"{figures['seconds_per_epoch']:.3f}",
            f"{figures['seconds_per_100_epochs']:.1f}",
            f"{figures['tflops']:.2f}",
            f"{100 * figures['of_peak']:.1f} %",
            f"{100 * figures['of_own_products']:.1f} %",
            # Of all models, where several are trained together.
            f"{figures['models'] * usual / figures['seconds_per_epoch']:.1f}" if usual else formatting.ABSENT,
        )
    synthetic = {figures["synthetic"] for figures in measured.values() if figures["synthetic"]}
    console.show(screen, content, title + (" (synthetic data)" if synthetic else ""))
    for way, figures in ways.items():
        if "failed" in figures:
            console.warn(screen, f"{WAYS[way]}: {figures['failed']}")
