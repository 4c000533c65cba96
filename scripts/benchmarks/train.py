"""Seconds per epoch of training, kdx against the usual way written out in usual.py.

Every variant runs in a process of its own; the processes train one epoch each in turn, after a warm-up round, and are
stopped while it is another's turn. A ratio is the median over the rounds of usual / variant within the round.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import table
from benchmarks.process import Worker
from benchmarks.work import JOBS, VARIANTS, Order, variants_of
from kdx.device.machine import QUIET_LOAD, describe_machine, slug
from kdx.errors import UserError, unknown
from kdx.storage.files import write_json

MOST_EPOCHS = 50


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `scripts/benchmark train`."""
    parser.add_argument("--jobs", default=",".join(JOBS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--variants", default=",".join(VARIANTS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=7, help="counted rounds after the warm-up (default: %(default)s)")
    parser.add_argument("--dataset", default="mnist", choices=["mnist", "digits"], help="default: mnist, from KDX_DATA")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=0, help="of the usual way's DataLoader (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="cut an epoch to so many steps: to try it out, not to measure")
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds on dataset=digits: to try it out, not to measure"
    )
    parser.add_argument("--output", type=Path, help="the JSON file (default: outputs/benchmarks/train-CPU.json)")


def run(options: argparse.Namespace) -> None:
    """Measure, print the tables and write the raw times."""
    jobs, variants = chosen("--jobs", options.jobs, JOBS), chosen("--variants", options.variants, VARIANTS)
    if options.quick:
        options.dataset, options.epochs = "digits", min(options.epochs, 3)
    if not 1 <= options.epochs <= MOST_EPOCHS:
        raise UserError(f"--epochs: {options.epochs} is not allowed; allowed: 1 to {MOST_EPOCHS}")
    from kdx.device.backend import has_compiler  # here, so that a mistake is told before torch is imported

    if not has_compiler():
        say("no C++ compiler (g++ or clang++): nothing is compiled")
        variants = [variant for variant in variants if not variant.startswith("compiled")]
    machine = describe_machine()
    if machine["load_average"] > QUIET_LOAD:
        say(f"WARNING: the load average is {machine['load_average']:.2f}: other work will distort the times")
    result: dict[str, Any] = {
        "benchmark": "train",
        "remark": _remark(options),
        "machine": machine,
        "options": {key: value for key, value in vars(options).items() if key not in ("output", "subcommand")},
        "jobs": {},
    }
    with TemporaryDirectory() as folder:
        for job in jobs:
            order = Order(
                job=job,
                variant=variants[0],
                dataset=options.dataset,
                threads=options.threads,
                batch_size=options.batch_size,
                steps=options.steps,
                loader_workers=options.workers,
                outputs=folder,
            )
            result["jobs"][job] = _measure(order, variants_of(job, variants), options.epochs)
    table.show(result)
    output = options.output or default_output(result, machine["cpu"])
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, result)
        print(output)


def _measure(order: Order, variants: list[str], epochs: int) -> dict[str, Any]:
    """One job: compile times first, then the rounds."""
    title = JOBS[order.job]
    orders = [replace(order, variant=variant) for variant in variants]
    measured: dict[str, Any] = {variant: {"seconds": []} for variant in variants}
    for one in orders:
        if one.compiles:
            # Both to the end of a first step, which includes loading the compiler.
            measured[one.variant]["compile_seconds"] = {
                state: _first_step(one, f"{title}, {VARIANTS[one.variant]}: compiling, {state}")
                for state in ("cold", "cached")
            }
    with ExitStack() as stack:
        workers = {}
        for one in orders:
            say(f"{title}: starting {VARIANTS[one.variant]}")
            workers[one.variant] = stack.enter_context(Worker(one, _cache(one)))
            measured[one.variant] |= workers[one.variant].facts
        for variant, worker in workers.items():
            measured[variant]["warm_up_seconds"] = worker.epoch()
        for number in range(epochs):
            for variant, worker in workers.items():
                measured[variant]["seconds"].append(worker.epoch())
            latest = "  ".join(f"{variant} {measured[variant]['seconds'][-1]:.3f}" for variant in variants)
            say(f"{title}: round {number + 1}/{epochs}: {latest}")
    return {"title": title, "variants": measured}


def _first_step(order: Order, text: str) -> float:
    say(text)
    with Worker(replace(order, steps=1), _cache(order)) as worker:
        return worker.epoch()


def _cache(order: Order) -> Path:
    return Path(order.outputs, "compiled", order.job, order.variant)


def chosen(option: str, text: str, allowed: dict[str, str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in allowed:
            raise unknown(option, name, allowed)
    return [name for name in allowed if name in names]


def _remark(options: argparse.Namespace) -> str | None:
    """Why the figures are no measurement, or None when they are one."""
    reasons = []
    if options.dataset != "mnist":
        reasons.append(f"dataset={options.dataset}, not MNIST")
    if options.steps is not None:
        reasons.append(f"epochs cut to {options.steps} steps")
    return "; ".join(reasons) or None


def default_output(result: dict[str, Any], processor: str) -> Path | None:
    """Where a real measurement is kept; a trial is kept only where it is told to."""
    if result["remark"]:
        return None
    outputs = Path(os.environ.get("KDX_OUTPUTS", "outputs"))
    return outputs / "benchmarks" / f"{result['benchmark']}-{slug(processor)}.json"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
