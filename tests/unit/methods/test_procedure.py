"""What methods with several fits stand on: stages that are not repeated, watched layers, drawn numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.miniature import BOTH_WAYS, CLASSES, backend, dataset, generator, perceptron, split
from torch import Tensor, nn

from kdx.config.compose import compose_config
from kdx.errors import UserError
from kdx.methods import PROCEDURES, build
from kdx.methods.distillation import CrossEntropy
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.methods.iterative_distillation import IterativeDistillation
from kdx.methods.method import Method
from kdx.methods.procedure import FitResult, Procedure, SingleFit, join_histories
from kdx.runs.folder import RunFolder
from kdx.storage.tensors import template_of
from kdx.training.checkpoint import Progress
from kdx.training.noise import NoiseSource
from kdx.training.objective import NoiseSpec, Objective, Term
from kdx.training.optimizer import BETA1, BETA2
from kdx.training.state import State
from kdx.training.step import Batch, make_step

VANILLA = Method("vanilla", (CrossEntropy(),))


def spec(folder: Path, epochs: int = 2) -> FitSpec:
    settings = compose_config(["trainer.batch_size=4", f"trainer.epochs={epochs}"]).trainer
    return FitSpec("miniature", settings, 0, RunFolder(folder))


def test_a_fit_trains_as_it_is_told_and_is_evaluated_in_whole_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, seen = nn.Linear.forward, set()

    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        seen.add((torch.is_grad_enabled(), torch.get_float32_matmul_precision()))
        return original(self, input)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    chosen = backend()
    torch.set_float32_matmul_precision("medium")
    fit(perceptron(), VANILLA, TrainingInputs(replace(dataset(split(12)), validation=split(5))), spec(tmp_path), chosen)
    assert seen == {(True, "medium"), (False, "highest")}


class Twice(Procedure):
    """Two fits, the second from the weights of the first."""

    def run(self, network, method, inputs, spec, backend) -> FitResult:
        first, before = fit(network, method, inputs, spec.at("first"), backend)
        second, after = fit(first, method, inputs, spec.at("second", lr=1e-4, epochs=3), backend)
        return FitResult(second, join_histories([before, after]))


class Stopped(Exception):
    """Instead of a signal."""


def test_a_finished_stage_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inputs = TrainingInputs(dataset(split(12)))
    whole = Twice().run(perceptron(), VANILLA, inputs, spec(tmp_path / "whole"), backend())

    def stop_in_the_second(student: nn.Module, epoch: int) -> None:
        raise Stopped

    given = spec(tmp_path / "stopped")
    first, _ = fit(perceptron(), VANILLA, inputs, given.at("first"), backend())
    with pytest.raises(Stopped):
        fit(first, VANILLA, inputs, given.at("second", lr=1e-4, epochs=3), backend(), stop_in_the_second)

    taken: list[int] = []
    original = VANILLA.objective

    def counting(self: Method, *arguments):
        objective = original(*arguments)
        term = objective.terms["cross_entropy"]
        return Objective({"cross_entropy": Term(lambda step: (taken.append(1), term.value(step))[1])})

    monkeypatch.setattr(Method, "objective", counting)
    continued = Twice().run(perceptron(), VANILLA, inputs, given, backend())
    assert len(taken) == 3 * 3
    for name, value in continued.network.state_dict().items():
        assert torch.equal(value, whole.network.state_dict()[name])
    rows = [{key: row[key] for key in ("stage", "epoch", "loss", "lr")} for row in continued.progress.history]
    assert rows == [{key: row[key] for key in rows[0]} for row in whole.progress.history]
    assert [(row["stage"], row["epoch"]) for row in rows] == [(1, 1), (1, 2), (2, 3), (2, 4), (2, 5)]
    # Half of the second fit's three epochs at its own rate, then falling.
    assert [row["lr"] for row in rows][2:] == pytest.approx([1e-4, 1e-4 * 8 / 9, 1e-4 * 2 / 9])


def test_stages_see_the_examples_in_orders_of_their_own(tmp_path: Path):
    seen: dict[str, list[int]] = {"": [], "first": [], "again": []}
    for stage, labels in seen.items():

        class Witness(Method):
            def objective(self, student: nn.Module, teacher: nn.Module | None, examples: int) -> Objective:
                def note(step) -> Tensor:
                    labels.extend(step.labels.tolist())  # noqa: B023
                    return step.logits.square().mean()

                return Objective({"note": Term(note)})

        examples = split(12)
        examples.labels.copy_(torch.arange(12) % CLASSES)
        given = spec(tmp_path / (stage or "none"), epochs=4)
        fit(
            perceptron(),
            Witness("witness", ()),
            TrainingInputs(dataset(examples)),
            given.at(stage) if stage else given,
            backend(),
        )
    assert len({tuple(labels) for labels in seen.values()}) == 3


def test_after_epoch_sees_the_student_that_is_trained(tmp_path: Path):
    states = []
    network, progress = fit(
        perceptron(),
        VANILLA,
        TrainingInputs(dataset(split(12))),
        spec(tmp_path),
        backend(),
        lambda student, epoch: states.append((epoch, student.get_parameter("fc1.weight").detach().clone())),
    )
    assert [epoch for epoch, _ in states] == [1, 2]
    assert not torch.equal(states[0][1], states[1][1])
    assert torch.equal(states[1][1], network.get_parameter("fc1.weight"))
    assert len(progress.history) == 2


def test_joined_adds_up_what_was_spent():
    parts = [
        Progress(3, 1.5, 0.0, [{"epoch": 1, "loss": 2.0}], best_epoch=1),
        Progress(4, 2.0, 0.0, [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]),
    ]
    whole = join_histories(parts)
    assert (whole.steps, whole.seconds, whole.best_epoch) == (7, 3.5, None)
    assert whole.history == [
        {"stage": 1, "epoch": 1, "loss": 2.0},
        {"stage": 2, "epoch": 2, "loss": 1.0},
        {"stage": 2, "epoch": 3, "loss": 0.5},
    ]


def one_step(student: nn.Module, objective: Objective, noise: dict[str, Tensor], eager: bool) -> list[float]:
    state = State.of(student, len(objective.terms))
    step = make_step(student, objective, eager=eager, autocast=None)
    examples = split(8)
    row = torch.tensor([0.0, 1.0, 1 - BETA1, 1 - BETA2])
    step(state, Batch(examples.images, examples.labels, None), noise, row)
    return state.sums.tolist()


@BOTH_WAYS
def test_watched_layers_are_what_the_student_computes(eager: bool):
    student = perceptron()
    objective = Objective(
        {
            "hidden": Term(lambda step: step.activations["fc1_relu"].square().sum()),
            "logits": Term(lambda step: step.logits.square().sum()),
        },
        feature_layers=("fc1_relu",),
    )
    hidden = torch.relu(student.fc1(split(8).images.flatten(1)))
    expected = [hidden.square().sum().item(), student.fc2(hidden).square().sum().item()]
    assert one_step(student, objective, {}, eager)[1:] == pytest.approx(expected, rel=1e-5)


def test_only_layers_that_are_there_can_be_watched():
    with pytest.raises(AssertionError, match="nothing"):
        make_step(perceptron(), Objective({}, feature_layers=("nothing",)), eager=True, autocast=None)


@BOTH_WAYS
def test_terms_read_what_was_drawn(eager: bool):
    draw = NoiseSpec(lambda batch: torch.empty(batch, 2), lambda noise, numbers: noise.normal_(generator=numbers))
    objective = Objective(
        {"drawn": Term(lambda step: step.noise["mine"].sum() + 0 * step.logits.sum())}, noise_specs={"mine": draw}
    )
    source = NoiseSource(perceptron(), split(8).images, generator(3), objective.noise_specs)
    first = {name: value.clone() for name, value in source.draw().items()}
    assert torch.equal(first["mine"], torch.randn(8, 2, generator=generator(3)))
    assert not torch.equal(source.draw()["mine"], first["mine"])
    assert one_step(perceptron(), objective, first, eager)[1] == pytest.approx(first["mine"].sum().item(), rel=1e-5)


def test_a_copy_is_emptied_and_the_original_is_not():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert not any(value.any() for value in template_of(network).state_dict().values())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_unknown_procedures_and_settings_are_told_by_name():
    plain = {"name": "x", "parts": ["labels"]}
    assert isinstance(build(plain)[1], SingleFit)
    with pytest.raises(UserError, match=r"method\.procedure.*'onc'.*once"):
        build(plain | {"procedure": "onc"})
    with pytest.raises(UserError, match=r"method.*'sigmb'"):
        build(plain | {"sigmb": 1})


def test_every_procedure_says_how_it_trains():
    for name in PROCEDURES.names():
        kind = PROCEDURES.find(name, "method.procedure")
        # A chain is no procedure: it consists of runs.
        assert kind is IterativeDistillation or kind.run is not Procedure.run
