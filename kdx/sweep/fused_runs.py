"""Several runs trained together as one program: kdx/experiment.py for all of them at once."""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from traceback import clear_frames

import torch
from torch import nn

from kdx.checks import check_teachers
from kdx.config.schema import Config
from kdx.data import load_data
from kdx.device.backend import Backend, prepare_device
from kdx.errors import Diverged, UserError
from kdx.experiment import fit_spec, initial_student, load_inputs, report
from kdx.methods import build
from kdx.methods.fit import FitSpec, TrainingInputs, initial_figures, make_train_spec
from kdx.methods.method import Method
from kdx.methods.procedure import FitResult, SingleFit
from kdx.runs.folder import RunFolder, run_folder
from kdx.sweep.grouping import models_that_fit, split_evenly
from kdx.training.stacked import FusionMode
from kdx.training.trainer import train_fused

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """The arguments of `fit` for one of several networks that are trained together."""

    network: nn.Module
    method: Method
    spec: FitSpec


def fit_fused(
    fits: Sequence[Fit], inputs: TrainingInputs, backend: Backend, way: FusionMode
) -> list[FitResult | Diverged]:
    """`fit` for several networks of one structure, in step; for one that diverged, the exception.

    The figures are `initial_figures` and `fused_models`, how many were trained together.
    """
    # First, because the networks are then prepared and trained in place.
    initial = [initial_figures(each.network, each.method, each.spec) for each in fits]
    train_specs = [make_train_spec(each.network, each.method, inputs, each.spec, backend) for each in fits]
    learners = train_fused(train_specs, backend, way)
    return [
        learner.failure
        or FitResult(
            each.method.finalize(learner.student),
            learner.progress,
            {**figures, "fused_models": learner.fused_models},
        )
        for each, learner, figures in zip(fits, learners, initial, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Run:
    number: int
    config: Config
    folder: RunFolder
    method: Method


def run_fused(configs: Sequence[Config], way: FusionMode, max_models: int | None) -> list[Path | Exception | None]:
    """Run experiments of one `kdx.sweep.grouping.fusion_key`, as many at once as fit in memory or `max_models`.

    Returns for each its folder or its failure, and None for those that are left to `kdx.experiment.run`: finished runs,
    runs that another process works on, and a single remaining run. Each run writes the same folder as alone; its
    `train_seconds` are an equal share of the time, and `fused_models` in metrics.json says how many were trained
    together, itself included. Raises Interrupted when stopped from outside.
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
            # The failure counts for all runs that have no result.
            for run in due:
                outcomes[run.number] = outcomes[run.number] or failure
    if failures := [outcome for outcome in outcomes if isinstance(outcome, Exception)]:
        _let_go(failures)
    return outcomes


def _let_go(failures: Sequence[BaseException]) -> None:
    """Free what the failures' stack frames hold, such as the tensors of all models; the traceback text stays."""
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
    """Whether the run is unfinished, or to be repeated, and this process has its lock."""
    return held.enter_context(run.folder.lock(wait=False)) and not run.folder.clear_unless_finished(
        repeat=run.config.force
    )


def _outcomes(runs: Sequence[_Run], way: FusionMode, max_models: int | None) -> Iterator[tuple[_Run, Path | Exception]]:
    first, method = runs[0].config, runs[0].method
    check_teachers(first, method)
    backend = prepare_device(first.device)
    data = load_data(first.dataset).to(backend.device)
    # All methods have the same structure and differ only in numbers.
    network = initial_student(first, data)
    refused = {run: failure for run in runs if (failure := _refused(run, network))}
    yield from refused.items()
    runs = [run for run in runs if run not in refused]
    if not runs:
        return
    method = runs[0].method
    student = method.prepare(network).to(backend.device)
    inputs = load_inputs(first, method, data, backend, trained=True)
    batch = torch.arange(min(first.trainer.batch_size, data.train.per_epoch), device=backend.device)
    most = max_models or models_that_fit(student, data.train.take(batch)[0])
    for part in split_evenly(runs, most):
        yield from _of_part(part, inputs, backend, way)


def _refused(run: _Run, network: nn.Module) -> UserError | None:
    """The error if the run's method does not apply to the network, because of a setting in which the runs differ."""
    try:
        # `fusion_key` admits only methods of one fit.
        SingleFit().check_network(network, run.method)
    except UserError as error:
        return error
    return None


def _of_part(
    runs: Sequence[_Run], inputs: TrainingInputs, backend: Backend, way: FusionMode
) -> Iterator[tuple[_Run, Path | Exception]]:
    log.info("%d runs are trained together: %s", len(runs), ", ".join(run.folder.path.name for run in runs))
    results = _trained(runs, inputs, backend, way)
    if results is None:
        log.warning("%d models do not fit in memory together; they are trained in two parts", len(runs))
        for half in split_evenly(runs, (len(runs) + 1) // 2):
            yield from _of_part(half, inputs, backend, way)
        return
    for run, result in zip(runs, results, strict=True):
        yield run, result if isinstance(result, Diverged) else _reported(run, result, inputs, backend)


def _trained(
    runs: Sequence[_Run], inputs: TrainingInputs, backend: Backend, way: FusionMode
) -> list[FitResult | Diverged] | None:
    """The results of the runs; None if there was not enough memory for more than one model."""
    fits = [Fit(initial_student(run.config, inputs.data), run.method, fit_spec(run.config, run.folder)) for run in runs]
    try:
        return fit_fused(fits, inputs, backend, way)
    except torch.OutOfMemoryError:
        if len(runs) == 1:
            raise
    # Free the memory before trying with fewer models; the error holds tensors, and may be in a reference cycle.
    gc.collect()
    return None


def _reported(run: _Run, result: FitResult, inputs: TrainingInputs, backend: Backend) -> Path | Exception:
    try:
        report(run.config, fit_spec(run.config, run.folder), result, inputs, backend)
    except Exception as failure:
        return failure
    return run.folder.path
