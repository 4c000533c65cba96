"""Training the jobs of a table: one after another, fused on a GPU, or by one of Hydra's launchers."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdx.config.schema import Config
from kdx.errors import describe, log_failures
from kdx.reproduce.jobs import Job, JobResult, Request
from kdx.runs.reader import read_lines, read_settings
from kdx.sweep.fused_runs import run_fused
from kdx.sweep.grouping import groups

log = logging.getLogger(__name__)


def run_all(name: str, jobs: Sequence[Job], order: Request, recorded: Mapping[int, JobResult]) -> list[JobResult]:
    """Run the unfinished jobs of the table `name`: one by one, on a GPU also together, or by a launcher.

    A failure does not stop the other jobs. `recorded` are jobs, by index, that are not trained because a table has
    their results.
    """
    # Here, because they import torch.
    from kdx.device.backend import choose_device
    from kdx.reproduce.architecture import network_figures
    from kdx.reproduce.launched import train_launched

    chosen = {number: job for number, job in enumerate(jobs) if order.trains(job.row) and number not in recorded}
    # With a launcher, the jobs may run on another machine's device.
    for job in chosen.values() if not order.launcher else ():
        choose_device(job.config.device)
    _check_data(list(chosen.values()))
    due = list(chosen.values())
    failures = train_launched(due, order.launcher, name) if order.launcher else train_fused(due)
    # The seeds of a row share their network.
    networks = {job.row: network_figures(job.config, job.subject, job.generation) for job in jobs if job.seed == 0}
    results: dict[int, JobResult] = {}
    for number, job in chosen.items():
        network = networks.get(job.row, {})
        # Asked once for each job, because all results of a folder are read for it.
        if job.finished:
            results[number] = _done(job, network)
        else:
            log.warning(
                "run %d of %d: %s, seed %d: %s", number + 1, len(jobs), job.row, job.seed, shlex.join(job.words)
            )
            results[number] = _trained(job, network, failures.get(job.run))
    # The others afterwards, because their teacher, say, may have been trained just now.
    for number, job in enumerate(jobs):
        if number not in results:
            network = networks.get(job.row, {})
            absent = recorded.get(number) or _missing(job, network)
            results[number] = _done(job, network) if job.finished else absent
    return [_timed(results[number], order) for number in range(len(jobs))]


def _timed(done: JobResult, order: Request) -> JobResult:
    """The result with the speedups of its inference, if the table shows them."""
    job = done.job
    if not job.timed or done.status != "finished" or done.recorded is not None:
        return done
    # Here, because it imports all runtimes.
    from kdx.reproduce.speedups import speedups

    # With train=false nothing is timed either.
    found = speedups(job.folder.path, time=order.trains(job.row), budget=order.budget)
    return replace(done, figures=done.figures | found)


def _check_data(jobs: Sequence[Job]) -> None:
    """Raise UserError if a data set cannot be loaded, before any run starts."""
    from kdx.data import load_data

    settings = {job.config.dataset.model_dump_json(): job.config.dataset for job in jobs if not job.finished}
    for each in settings.values():
        load_data(each)


def _trained(job: Job, network: Mapping[str, Any], failure: Exception | None) -> JobResult:
    """Train the job, if needed; `failure` is the error if it was trained together with others and failed."""
    try:
        with log_failures(job.folder.log_file):
            if failure is not None:
                raise failure
            _train(job)
    except Exception as error:
        return replace(_missing(job, network), status="failed", reason=describe(error))
    return _done(job, network)


def _missing(job: Job, network: Mapping[str, Any]) -> JobResult:
    from kdx.reproduce.architecture import with_derived

    return JobResult(job, "missing", "not run", {} if job.changes_network else with_derived(network))


def _done(job: Job, network: Mapping[str, Any]) -> JobResult:
    from kdx.reproduce.architecture import with_derived

    if job.subject == "network":
        return JobResult(job, "finished", "", with_derived(network))
    if job.generation is not None:
        return JobResult(job, "finished", "", _of_generation(job, job.generation), _device_of(job.folder.path))
    # A teacher stays the network that it was; of a student only these are told by no measurement.
    known = (
        network if job.subject == "teacher" else {key: network[key] for key in network if key == "moving_statistics"}
    )
    measured = job.folder.metrics() | _by_layer(job.folder.path) | _at_the_end(job.folder.path)
    told = {key: value for key, value in measured.items() if value is not None}
    return JobResult(job, "finished", "", with_derived({**known, **told}), _device_of(job.folder.path))


def _train(job: Job) -> None:
    # Here, because it imports torch.
    from kdx.experiment import run, train_teachers

    if job.subject == "teacher":
        train_teachers(job.config)
    else:
        run(job.config)


def _device_of(folder: Path) -> dict[str, Any]:
    """The settings of `device` with which a run was executed."""
    settings = read_settings(folder)
    return {key.removeprefix("device."): value for key, value in settings.items() if key.startswith("device.")}


def _by_layer(folder: Path) -> dict[str, float]:
    """`sparsity_percent.LAYER` for every weight matrix."""
    rows = read_lines(folder / "layers.csv")
    return {f"sparsity_percent.{row['layer']}": float(row["sparsity_percent"]) for row in rows}


def _at_the_end(folder: Path) -> dict[str, float]:
    """`last.COLUMN`: the last epoch's values in the history."""
    history = read_lines(folder / "history.csv")
    return {f"last.{key}": float(value) for key, value in history[-1].items() if value} if history else {}


def _of_generation(job: Job, generation: int) -> dict[str, Any]:
    """The figures of an accepted generation of a chain, before or after pruning; empty if the chain is shorter."""
    rows = read_lines(job.folder.path / ("chain.csv" if job.subject == "generation" else "pruned.csv"))
    found = [row for row in rows if int(row["generation"]) == generation and row.get("accepted", "yes") == "yes"]
    if not found:
        return {}
    numbers = ("val_error_percent", "test_error_percent", "parameters", "nonzero_weights", "C")
    return {key: float(found[0][key]) for key in numbers if found[0].get(key)}


def train_fused(jobs: Sequence[Job]) -> dict[str, Exception]:
    """Train together the unfinished students that can be combined; return the failures by run id.

    A run that can be combined with no other is left to be trained alone.
    """
    students = [job for job in jobs if job.subject == "student" and is_faster(job.config)]
    due = list({job.run: job for job in students if not job.finished}.values())
    failures: dict[str, Exception] = {}
    for group in groups([job.config for job in due]):
        together = [due[index] for index in group]
        if len(together) < 2:
            continue
        log.warning("%d runs together: %s", len(together), ", ".join(dict.fromkeys(job.row for job in together)))
        outcomes = run_fused([job.config for job in together], "auto", None)
        for job, outcome in zip(together, outcomes, strict=True):
            if isinstance(outcome, Exception):
                failures[job.run] = outcome
    return failures


def is_faster(config: Config) -> bool:
    """Whether training together is known to be faster: on a GPU, which one model does not fill; not on a CPU."""
    return config.device.kind in ("auto", "cuda") and torch.cuda.is_available()
