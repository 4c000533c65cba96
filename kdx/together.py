"""Several runs of one kind as one program: the story of kdx/experiment.py, told once for all of them."""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from traceback import clear_frames

import torch
from torch import nn

from kdx.config import Config
from kdx.data import load_data
from kdx.device import Engine, prepare_device
from kdx.errors import Diverged, UserError
from kdx.experiment import get_lesson, initial_student, plan_of, report
from kdx.fit import Fit, Fitted, Lesson, fit_together
from kdx.grouping import models_that_fit, parts
from kdx.methods import Method
from kdx.procedures import build
from kdx.procedures.procedure import Once, Outcome
from kdx.runs import RunFolder, run_folder
from kdx.stacked import Way
from kdx.teacher import check_teachers

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Run:
    number: int
    config: Config
    folder: RunFolder
    method: Method


def run_together(configs: Sequence[Config], way: Way, max_models: int | None) -> list[Path | Exception | None]:
    """Run experiments of one `kdx.grouping.kind`, as many at once as fit in memory or `max_models`.

    Gives for each its folder, or what went wrong with it; None for those that are left to `kdx.experiment.run`: they
    are finished, another process works on them, or no two are left. Each run leaves the folder that it leaves alone;
    its `train_seconds` are its equal share of the time that it was trained together with others, and `fused_models`
    in metrics.json says with how many, itself included. Raises Interrupted when stopped from outside.
    """
    outcomes: list[Path | Exception | None] = [None] * len(configs)
    with ExitStack() as held:
        due = [run for run in _in_lock_order(configs) if _is_due(run, held)]
        if len(due) < 2:
            return outcomes
        for run in due:
            held.enter_context(run.folder.logged())
            run.folder.write_config(run.config)
        try:
            for run, outcome in _outcomes(sorted(due, key=lambda run: run.number), way, max_models):
                outcomes[run.number] = outcome
        except Exception as failure:
            # It is that of all runs that it left without a result.
            for run in due:
                outcomes[run.number] = outcomes[run.number] or failure
    if failures := [outcome for outcome in outcomes if isinstance(outcome, Exception)]:
        _let_go(failures)
    return outcomes


def _let_go(failures: Sequence[BaseException]) -> None:
    """Free what the frames of failures hold, tensors of all models among it; what their tracebacks say stays."""
    pending = [*failures]
    while pending:
        failure = pending.pop()
        clear_frames(failure.__traceback__)
        pending += [each for each in (failure.__cause__, failure.__context__) if each is not None]
    gc.collect()


def _in_lock_order(configs: Sequence[Config]) -> list[_Run]:
    runs = [_Run(number, config, run_folder(config), build(config.method)[0]) for number, config in enumerate(configs)]
    return sorted(runs, key=lambda run: run.folder.path)


def _is_due(run: _Run, held: ExitStack) -> bool:
    """Whether the run is not finished, or to be repeated, and its lock is ours."""
    return held.enter_context(run.folder.lock(wait=False)) and not run.folder.settled(repeat=run.config.force)


def _outcomes(runs: Sequence[_Run], way: Way, max_models: int | None) -> Iterator[tuple[_Run, Path | Exception]]:
    first, method = runs[0].config, runs[0].method
    check_teachers(first, method)
    engine = prepare_device(first.device)
    data = load_data(first.dataset).to(engine.device)
    # Of one structure for all, which differ in its numbers.
    network = initial_student(first, data)
    refused = {run: failure for run in runs if (failure := _refused(run, network))}
    yield from refused.items()
    runs = [run for run in runs if run not in refused]
    if not runs:
        return
    method = runs[0].method
    student = method.prepare(network).to(engine.device)
    lesson = get_lesson(first, method, data, engine, trained=True)
    batch = torch.arange(min(first.trainer.batch_size, data.train.per_epoch), device=engine.device)
    most = max_models or models_that_fit(student, data.train.take(batch)[0])
    for part in parts(runs, most):
        yield from _of_part(part, lesson, engine, way)


def _refused(run: _Run, network: nn.Module) -> UserError | None:
    """Why a run's method can do nothing for the network, if so: a setting in which it differs from the others."""
    try:
        # Runs of one kind have one fit.
        Once().check_network(network, run.method)
    except UserError as error:
        return error
    return None


def _of_part(runs: Sequence[_Run], lesson: Lesson, engine: Engine, way: Way) -> Iterator[tuple[_Run, Path | Exception]]:
    log.info("%d runs are trained together: %s", len(runs), ", ".join(run.folder.path.name for run in runs))
    results = _trained(runs, lesson, engine, way)
    if results is None:
        log.warning("%d models do not fit in memory together; they are trained in two parts", len(runs))
        for half in parts(runs, (len(runs) + 1) // 2):
            yield from _of_part(half, lesson, engine, way)
        return
    for run, fitted in zip(runs, results, strict=True):
        yield run, fitted if isinstance(fitted, Diverged) else _reported(run, fitted, lesson, engine)


def _trained(runs: Sequence[_Run], lesson: Lesson, engine: Engine, way: Way) -> list[Fitted | Diverged] | None:
    """The results of the runs; None where there was not enough memory for more than one."""
    fits = [Fit(initial_student(run.config, lesson.data), run.method, plan_of(run.config, run.folder)) for run in runs]
    try:
        return fit_together(fits, lesson, engine, way)
    except torch.OutOfMemoryError:
        if len(runs) == 1:
            raise
    # What did not fit must be gone before less of it is tried; the error held it, and may be part of a cycle.
    gc.collect()
    return None


def _reported(run: _Run, fitted: Fitted, lesson: Lesson, engine: Engine) -> Path | Exception:
    outcome = Outcome(fitted.network, fitted.progress, {**fitted.initial, "fused_models": fitted.models})
    try:
        report(run.config, plan_of(run.config, run.folder), outcome, lesson, engine)
    except Exception as failure:
        return failure
    return run.folder.path
