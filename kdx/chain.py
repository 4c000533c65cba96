"""Iterative knowledge distillation (IKD): a chain of runs, each training a smaller network than its teacher."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdx.config.networks import NetworkSettings
from kdx.config.schema import Config
from kdx.data import load_data
from kdx.data.dataset import Data, Split
from kdx.device.backend import prepare_device
from kdx.measure import measure
from kdx.measure.accuracy import error_percent, logits_of, within_tolerance
from kdx.measure.footprint import parameter_count
from kdx.methods import build
from kdx.methods.iterative_distillation import IterativeDistillation
from kdx.methods.procedure import Figure, FitResult
from kdx.models import build_model
from kdx.runs.folder import RunFolder, teacher_folder
from kdx.runs.identity import packages_record
from kdx.runs.writer import read_history, write_results
from kdx.storage.files import write_csv
from kdx.storage.tensors import load_weights, save_weights
from kdx.teacher import get_teacher
from kdx.training.checkpoint import Progress
from kdx.training.objective import LossInputs, Objective

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """A network trained for the chain, M_0 or a candidate for a later generation, with its errors.

    `val_loss` is its training loss over the validation images, for comparing candidates; `weights` is its file,
    `folder` that of its run, None if M_0 comes from a checkpoint.
    """

    generation: int
    teacher: int | None
    val_error_percent: float | None
    test_error_percent: float
    parameters: int
    train_seconds: float
    weights: Path
    folder: Path | None
    val_loss: float | None = None

    @property
    def learned_from(self) -> str:
        """The member and its teacher in the chain's notation: M_2<-M_1."""
        return f"M_{self.generation}<-M_{self.teacher}"


@dataclass(frozen=True)
class Pruned:
    """An accepted member after method=prune, which is a run of its own."""

    val_error_percent: float | None
    test_error_percent: float
    nonzero_weights: int
    train_seconds: float
    folder: Path


Train = Callable[[int, Generation], Generation]
"""Train the candidate for generation i whose teacher is the given member."""


def run_generations(
    chain: IterativeDistillation, first: Generation, train: Train
) -> tuple[list[Generation], list[Generation]]:
    """Grow the chain from M_0, `first`: the accepted members, one per generation, and all that were trained.

    The validation error decides whether a generation is within the tolerance (IKD algorithm 2; kdx reads its |.| as
    one-sided, since it would also stop on improvements). Among the candidates of an ancestral generation the validation
    error or loss decides, and the earlier teacher wins a tie.
    """
    merit = _validation_loss if chain.select == "loss" else _validation_error
    accepted, trained = [first], [first]
    for generation in range(1, chain.generations + 1):
        teachers = accepted if chain.teacher == "ancestral" else accepted[-1:]
        candidates = [train(generation, teacher) for teacher in teachers]
        trained += candidates
        best = candidates[0] if chain.teacher == "parental" else min(candidates, key=merit)
        if chain.tolerance is not None:
            error, last = _validation_error(best), _validation_error(accepted[-1])
            if not within_tolerance(error, last, chain.tolerance):
                log.info(
                    "generation %d exceeds the last validation error by %.4g points: stopped", generation, error - last
                )
                break
        accepted.append(best)
    return accepted, trained


def run_chain(config: Config, chain: IterativeDistillation, folder: RunFolder, run: Callable[[Config], Path]) -> None:
    """Run the chain that `config` describes, with `run` for every candidate in a folder of its own; write its results.

    A finished candidate is not trained again, so that an interrupted chain is resumed; `force` repeats the candidates
    too. Raises UserError if the teacher's network cannot be refined that often.
    """
    chain.check(config)
    structures = chain.structures(config.teacher.network())
    backend = prepare_device(config.device)
    data = load_data(config.dataset).to(backend.device)
    origin = get_teacher(config, data, backend)

    def network(generation: int, weights: Path) -> nn.Module:
        blank = build_model(structures[generation], data.image_shape, data.classes, config.seed).to(backend.device)
        return load_weights(weights, blank)

    def train(generation: int, teacher: Generation) -> Generation:
        settings = _config_of(config, chain, structures, generation, teacher)
        path = run(settings)
        log.info("generation %d, taught by M_%d: %s", generation, teacher.generation, path)
        member = _finished(path, generation, teacher)
        if chain.teacher == "parental" or chain.select == "error":
            return member
        assert data.validation is not None, "Chain.check asks for a validation split"
        student, taught_by = network(generation, member.weights), network(teacher.generation, teacher.weights)
        objective = build(settings.method)[0].objective(student, taught_by, len(data.train))
        objective = objective.with_label_smoothing(settings.trainer.label_smoothing)
        return replace(member, val_loss=mean_loss(objective, student, taught_by, data.validation))

    accepted, trained = run_generations(chain, _origin(config, origin, data), train)
    pruned = [_pruned(run(_pruning_of(config, chain, structures, each))) for each in accepted] if chain.prune else []
    last, structure = accepted[-1], structures[len(accepted) - 1]
    weights = pruned[-1].folder / "student.safetensors" if pruned else last.weights
    final = network(last.generation, weights)
    outputs = Path(config.outputs)
    _write(folder.path / "chain.csv", [_row(member, accepted, outputs) for member in trained])
    _write(folder.path / "pruned.csv", [_pruned_row(number, pruned, outputs) for number in range(len(pruned))])
    save_weights(folder.path / "student.safetensors", final)
    names = {"run_id": folder.path.name, "dataset": data.name, "method": str(config.method["name"])}
    names |= {"teacher": config.teacher.name, "student": structure.name, **packages_record(config)}
    # All figures are relative to M_0, the first teacher.
    measured = measure(final, origin, data, backend.device, backend.latency_seconds)
    outcome = _outcome(final, accepted, trained, pruned)
    write_results(folder, names, config.seed, measured, outcome.progress, outcome.figures, backend.record())


def mean_loss(objective: Objective, student: nn.Module, teacher: nn.Module, split: Split) -> float:
    """The mean of `objective` over the images of `split`, not mirrored, eval mode, float32; for IKD eq. 1 in nats."""
    logits, taught = (logits_of(each, split)[:, 0] for each in (student, teacher))
    loss, _ = objective.loss(
        LossInputs(
            logits=logits,
            labels=split.labels.to(logits.device),
            teacher_logits=taught,
            parameters=dict(student.named_parameters()),
            hyperparameters={
                name: torch.tensor(number(0.0)).to(logits) for name, number in objective.hyperparameters.items()
            },
        )
    )
    return loss.item()


def _config_of(
    config: Config,
    chain: IterativeDistillation,
    structures: list[NetworkSettings],
    generation: int,
    teacher: Generation,
) -> Config:
    """The configuration of one candidate's run, as a user could type it."""
    method = {
        key: value
        for key, value in config.method.items()
        if key not in {"procedure", *IterativeDistillation.model_fields}
    }
    settings = config.teacher
    if teacher.generation:
        network = structures[teacher.generation].model_dump()
        taught_by = settings.model_dump() | network | {"checkpoint": str(teacher.weights)}
        settings = type(settings).model_validate(taught_by)
    content = config.model_dump() | {
        "teacher": settings.model_dump(),
        "student": structures[generation].model_dump() | {"checkpoint": None},
        "method": method | {"name": chain.member},
    }
    return Config.model_validate(content)


def _pruning_of(
    config: Config, chain: IterativeDistillation, structures: list[NetworkSettings], member: Generation
) -> Config:
    """The configuration of the run that prunes an accepted member, as a user could type it."""
    student = structures[member.generation].model_dump() | {"checkpoint": str(member.weights)}
    method = chain.pruning.model_dump()
    return Config.model_validate(config.model_dump() | {"student": student, "method": method})


def _origin(config: Config, network: nn.Module, data: Data) -> Generation:
    """M_0, the configured teacher."""
    checkpoint, folder = config.teacher.checkpoint, teacher_folder(config).path
    return Generation(
        generation=0,
        teacher=None,
        val_error_percent=None if data.validation is None else error_percent(network, data.validation),
        test_error_percent=error_percent(network, data.test),
        parameters=parameter_count(network),
        # The teacher's time is its own run's.
        train_seconds=0.0,
        weights=folder / "teacher.safetensors" if checkpoint is None else Path(checkpoint),
        folder=folder if checkpoint is None else None,
    )


def _finished(path: Path, generation: int, teacher: Generation) -> Generation:
    figures = RunFolder(path).metrics()
    names = ("val_error_percent", "test_error_percent", "parameters", "train_seconds")
    own = {name: figures[name] for name in names}
    return Generation(generation, teacher.generation, **own, weights=path / "student.safetensors", folder=path)


def _pruned(path: Path) -> Pruned:
    figures = RunFolder(path).metrics()
    names = ("val_error_percent", "test_error_percent", "nonzero_weights", "train_seconds")
    return Pruned(**{name: figures[name] for name in names}, folder=path)


def _validation_error(member: Generation) -> float:
    assert member.val_error_percent is not None, "Chain.check asks for a validation split"
    return member.val_error_percent


def _validation_loss(member: Generation) -> float:
    assert member.val_loss is not None, "run_chain computes it of every candidate that is chosen by it"
    return member.val_loss


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if rows:
        write_csv(path, list(rows[0]), rows)


def _row(member: Generation, accepted: list[Generation], outputs: Path) -> dict[str, Any]:
    """A row of chain.csv: C is parameters of M_0 / parameters, `run` a folder under the folder of all outputs."""
    return {
        "generation": member.generation,
        "teacher": member.teacher,
        "accepted": "yes" if member in accepted else "no",
        "val_error_percent": member.val_error_percent,
        "val_loss": member.val_loss,
        "test_error_percent": member.test_error_percent,
        "parameters": member.parameters,
        "C": accepted[0].parameters / member.parameters,
        "run": member.folder and member.folder.relative_to(outputs),
    }


def _pruned_row(generation: int, pruned: list[Pruned], outputs: Path) -> dict[str, Any]:
    """A row of pruned.csv: C is nonzero weights of the pruned M_0 / nonzero weights."""
    each = pruned[generation]
    return {
        "generation": generation,
        "val_error_percent": each.val_error_percent,
        "test_error_percent": each.test_error_percent,
        "nonzero_weights": each.nonzero_weights,
        "C": _ratio(pruned[0], each),
        "run": each.folder.relative_to(outputs),
    }


def _ratio(first: Pruned, pruned: Pruned) -> float | None:
    """C after pruning; None where no weight is left."""
    return first.nonzero_weights / pruned.nonzero_weights if pruned.nonzero_weights else None


def _outcome(
    final: nn.Module, accepted: list[Generation], trained: list[Generation], pruned: list[Pruned]
) -> FitResult:
    """The chain's outcome: the last accepted member's history, the seconds of all candidates and prunings."""
    last = accepted[-1]
    progress = Progress(seconds=sum(each.train_seconds for each in (*trained, *pruned)))
    if last.folder:
        progress.history = read_history(last.folder)
        progress.best_epoch = RunFolder(last.folder).metrics().get("best_epoch")
    figures: dict[str, Figure] = {
        "generation": last.generation,
        "C": accepted[0].parameters / last.parameters,
        "chain": " ".join(member.learned_from for member in accepted[1:]),
        "chain_runs": len(trained) - 1 + len(pruned),
    }
    if pruned:
        figures["C_pruned"] = _ratio(pruned[0], pruned[-1])
    return FitResult(final, progress, figures)
