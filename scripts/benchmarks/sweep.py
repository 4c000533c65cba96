"""Models per hour of a sweep over T and a weight, 16 students: fused, one after another, and in two processes.

Every figure is that of a whole `kdx train -m`, from its start to its summary, in a process of its own; teacher and
stored logits are there before. In every round each way runs once. A ratio is the median over the rounds of the other
way's seconds / the fused seconds within a round.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.train import chosen, default_output, say
from kdx import console, formatting
from kdx.device.machine import QUIET_LOAD, describe_machine
from kdx.errors import UserError
from kdx.storage.files import write_json

WAYS = {
    "alone": ["hydra/launcher=basic"],
    "processes": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "fused": ["hydra/launcher=fused"],
}
TITLES = {"alone": "one after another", "processes": "two processes", "fused": "fused"}
TEMPERATURES = "method.T=1,2,4,8"
JOBS = {
    "kd": ["method=kd", TEMPERATURES, "method.lambda_T=0.2,0.5,1,2"],
    "kd-vbd": ["method=kd-vbd", TEMPERATURES, "method.lambda_V=0.5,1,2,5"],
    "lenet5": ["method=kd", "student=lenet5-caffe", TEMPERATURES, "method.lambda_T=0.2,0.5,1,2"],
}
MODELS = 16


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `scripts/benchmark sweep`."""
    parser.add_argument("--jobs", default=",".join(JOBS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--ways", default=",".join(WAYS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=10, help="of every student (default: %(default)s)")
    parser.add_argument("--dataset", default="mnist", choices=["mnist", "digits"], help="default: mnist, from KDX_DATA")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: %(default)s")
    parser.add_argument("--compile", default="auto", choices=["auto", "true", "false"], help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="1 round of 1 epoch on digits: to try it, not to measure")
    parser.add_argument("--output", type=Path, help="the JSON file (default: outputs/benchmarks/sweep-PROCESSOR.json)")


def run(options: argparse.Namespace) -> None:
    """Measure, print the tables and write the raw times."""
    jobs, ways = chosen("--jobs", options.jobs, JOBS), chosen("--ways", options.ways, WAYS)
    if options.quick:
        options.dataset, options.rounds, options.epochs = "digits", 1, 1
    for name in ("rounds", "epochs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: {getattr(options, name)} is not allowed; allowed: at least 1")
    machine = describe_machine()
    machine["device"] = _device(options.device, machine["cpu"])
    if machine["load_average"] > QUIET_LOAD:
        say(f"WARNING: the load average is {machine['load_average']:.2f}: other work will distort the times")
    result: dict[str, Any] = {
        "benchmark": "sweep",
        "remark": None if options.dataset == "mnist" else f"dataset={options.dataset}, not MNIST",
        "machine": machine,
        "options": {key: value for key, value in vars(options).items() if key not in ("output", "subcommand")},
        "models": MODELS,
        "jobs": {},
    }
    common = [f"dataset={options.dataset}", f"trainer.epochs={options.epochs}", "teacher.trainer.epochs=1"]
    common += [f"device={options.device}", f"device.compile={options.compile}", "device.latency_seconds=0"]
    for job in jobs:
        with TemporaryDirectory() as folder:
            result["jobs"][job] = _measure(Path(folder), job, [*common, *JOBS[job]], ways, options.rounds)
    _show(result)
    output = options.output or default_output(result, machine["device"])
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, result)
        print(output)


def _measure(folder: Path, job: str, words: Sequence[str], ways: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """The seconds of every way's sweep, round by round."""
    say(f"{job}: teacher and logits")
    # The first values of the sweep, whose run is not kept.
    _kdx(folder / "prepared", "train", *(word.partition(",")[0] for word in words), "trainer.epochs=1")
    shutil.rmtree(folder / "prepared" / "runs")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways:
            outputs = folder / f"{way}-{number}"
            shutil.copytree(folder / "prepared", outputs)
            started = time.perf_counter()
            _kdx(outputs, "train", "-m", *words, *WAYS[way])
            seconds[way].append(time.perf_counter() - started)
            shutil.rmtree(outputs)
        latest = "  ".join(f"{way} {seconds[way][-1]:.1f} s" for way in ways)
        say(f"{job}: round {number + 1}/{rounds}: {latest}")
    return seconds


def _kdx(outputs: Path, *words: str) -> None:
    # A key that is given twice is a mistake: the last one counts here.
    last = {word.partition("=")[0]: word for word in words}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kdx", *last.values(), f"outputs='{outputs}'"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"kdx {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _device(choice: str, cpu: str) -> str:
    import torch

    used = torch.cuda.is_available() and choice != "cpu"
    return torch.cuda.get_device_name() if used else cpu


def _show(result: dict[str, Any]) -> None:
    screen, machine, options = console.console(), result["machine"], result["options"]
    screen.print(f"{machine['device']}, {machine['cores']} cores; {machine['system']}")
    screen.print(f"torch {machine['torch']}, Python {machine['python']}, kdx {machine['kdx']} ({machine['commit']})")
    screen.print(
        f"{MODELS} students of {options['epochs']} epochs, {options['dataset']}, {options['rounds']} rounds,"
        f" load average {machine['load_average']:.2f} before, {machine['date']}"
    )
    if result["remark"]:
        console.warn(screen, f"no measurement: {result['remark']}")
    for job, seconds in result["jobs"].items():
        content = console.table(
            console.words(""),
            *(console.numbers(header) for header in ("s", "models/hour", "fused is so many times as fast")),
        )
        for way, each in seconds.items():
            ratios = [one / fused for one, fused in zip(each, seconds.get("fused", []), strict=False)]
            content.add_row(
                TITLES[way],
                f"{median(each):.1f}",
                f"{3600 * MODELS / median(each):.0f}",
                f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else formatting.ABSENT,
            )
        console.show(screen, content, job)
