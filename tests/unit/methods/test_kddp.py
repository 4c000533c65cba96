"""The penalty on activations, and the procedure that removes what it silenced."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers.miniature import (
    CLASSES,
    backend,
    dataset,
    method,
    method_and_procedure,
    normal,
    perceptron,
    split,
    step_of,
)
from torch import Tensor, nn

from kdx.config.schema import TrainerSettings
from kdx.errors import Interrupted, UserError
from kdx.methods.distillation import CrossEntropy
from kdx.methods.fit import FitSpec, TrainingInputs
from kdx.methods.kddp import NeuronPruning
from kdx.methods.modifier import Context
from kdx.methods.procedure import FitResult
from kdx.runs.folder import RunFolder
from kdx.training.objective import LossInputs, Objective, Term

EXAMPLES = split(24)
EPOCHS = 3


def penalty(student: nn.Module, **settings) -> tuple[Objective, LossInputs]:
    """The objective, and what its terms see of five examples that excite the hidden layer as `hidden` says."""
    objective = method("kddp", **settings).objective(student, perceptron(seed=1), 24)
    hidden = torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0, 0.25]])
    examples = split(3)
    step = step_of(student, objective, examples, student(examples.images))
    return objective, replace(step, activations={"fc1_relu": hidden})


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 7.75), ("mean", 7.75 / 3)])
def test_the_penalty_by_hand(reduction: str, expected: float):
    objective, step = penalty(perceptron(), l1_reduction=reduction, L1=0.5, alpha=0.0)
    assert objective.feature_layers == ("fc1_relu",)
    total, _ = objective.loss(step)
    assert objective.terms["activation_l1"].value(step).item() == pytest.approx(expected)
    assert (total - objective.terms["cross_entropy"].value(step)).item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_active_neurons_are_counted_and_cost_nothing():
    objective, step = penalty(perceptron(), L1=0.0, alpha=0.0)
    # Of five, the second and the fourth answer to none of the three examples.
    assert objective.terms["active_neurons"].value(step).item() == 3
    torch.testing.assert_close(objective.loss(step)[0], objective.terms["cross_entropy"].value(step))


def spec(folder: Path, **trainer) -> FitSpec:
    values = {"epochs": EPOCHS, "batch_size": 8, "lr": 1e-2, "hold": 1.0, "patience": None, "checkpoint_seconds": 1e9}
    return FitSpec("miniature", TrainerSettings(**values | trainer), 0, RunFolder(folder))


def inputs() -> TrainingInputs:
    return TrainingInputs(dataset(EXAMPLES), perceptron(seed=1), normal(len(EXAMPLES), CLASSES, seed=4))


def dying(hidden: int = 6) -> nn.Sequential:
    """A perceptron of which two hidden neurons will never answer, whatever the training does to the others."""
    network = perceptron(hidden=hidden)
    with torch.no_grad():
        network.fc1.bias[[1, 4]] = -1e3
    return network


def shrunk(folder: Path, network: nn.Sequential | None = None, trainer: dict | None = None, **settings) -> FitResult:
    how, procedure = method_and_procedure("kddp", **settings)
    folder.mkdir(exist_ok=True)
    return procedure.run(
        dying() if network is None else network, how, inputs(), spec(folder, **trainer or {}), backend()
    )


def columns(outcome: FitResult, name: str) -> list:
    return [row.get(name) for row in outcome.progress.history]


def test_the_silent_neurons_go_and_the_others_are_trained_on_without_the_penalty(tmp_path: Path):
    outcome = shrunk(tmp_path)
    assert outcome.figures == {"fc1_size": 4, "removed_neurons": 2}
    assert outcome.network.get_parameter("fc1.weight").shape == (4, 36)
    assert outcome.network.get_parameter("fc2.weight").shape == (CLASSES, 4)
    assert columns(outcome, "stage") == [1] * EPOCHS + [2] * EPOCHS
    assert columns(outcome, "epoch") == list(range(1, 2 * EPOCHS + 1))
    assert all(value is not None for value in columns(outcome, "activation_l1")[:EPOCHS])
    assert columns(outcome, "activation_l1")[EPOCHS:] == [None] * EPOCHS
    assert all(0 < value <= 4 for value in columns(outcome, "active_neurons")[:EPOCHS])


def test_fine_tuning_goes_on_from_the_trained_weights(tmp_path: Path):
    """At a rate that moves nothing it gives back the survivors of the first fit."""
    outcome, before = shrunk(tmp_path, trainer={"lr": 1e-30}), dying()
    kept = [0, 2, 3, 5]
    assert torch.equal(outcome.network.get_parameter("fc1.weight"), before.fc1.weight[kept])
    assert torch.equal(outcome.network.get_parameter("fc2.weight"), before.fc2.weight[:, kept])
    images = EXAMPLES.images
    torch.testing.assert_close(outcome.network(images), before(images))


def test_every_round_fits_twice_and_each_fit_has_an_order_of_its_own(tmp_path: Path):
    outcome = shrunk(tmp_path, rounds=2)
    assert columns(outcome, "stage") == [stage for stage in (1, 2, 3, 4) for _ in range(EPOCHS)]
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == [
        f"checkpoint-{kind}-{number}.safetensors" for kind in ("fine-tuned", "penalised") for number in (1, 2)
    ]
    assert outcome.figures["removed_neurons"] == 2


def test_the_layer_remains_the_same_when_another_has_more_weights(tmp_path: Path):
    layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(36, 6), "fc1_relu": nn.ReLU(), "fc2": nn.Linear(6, 35)}
    network = nn.Sequential()
    for name, layer in {**layers, "fc2_relu": nn.ReLU(), "fc3": nn.Linear(35, CLASSES)}.items():
        network.add_module(name, layer)
    with torch.no_grad():
        # 216 weights against 210; with one neuron less, 180 against 175.
        network.fc1.bias.copy_(torch.tensor([5.0, -1e3, -1e3, -1e3, 5.0, 5.0]))
        network.fc2.bias.fill_(5.0)
    outcome = shrunk(tmp_path, network, rounds=2, trainer={"lr": 1e-30})
    assert outcome.figures == {"fc1_size": 3, "removed_neurons": 3}
    assert outcome.network.get_parameter("fc2.weight").shape == (35, 3)


def test_a_strong_penalty_removes_more_than_a_weak_one(tmp_path: Path):
    trainer = {"epochs": 30}
    widths = [
        shrunk(tmp_path / str(L1), perceptron(hidden=40), trainer, L1=L1).figures["fc1_size"] for L1 in (0.0, 3e-3)
    ]
    assert widths[0] > widths[1] > 0


def test_when_no_neuron_is_left_the_user_is_told_what_to_lower(tmp_path: Path):
    network = perceptron(hidden=3)
    with torch.no_grad():
        network.fc1.bias.fill_(-1e3)
    message = (
        r"^method\.L1: too high, all 3 neurons of fc1 have a mean activation below method\.threshold=1e-06;"
        r" allowed: a lower method\.L1 or method\.threshold$"
    )
    with pytest.raises(UserError, match=message):
        shrunk(tmp_path, network)


def test_a_threshold_that_nothing_is_below_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "kdx.methods.kddp"):
        outcome = shrunk(tmp_path, perceptron(hidden=3), threshold=1e-30, L1=0.0, trainer={"lr": 1e-30})
    assert outcome.figures == {"fc1_size": 3, "removed_neurons": 0}
    assert "no neuron of fc1 fell silent" in caplog.text


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (perceptron(), {"layer": "fc3"}, r"^method\.layer: 'fc3' is not known; did you mean 'fc1'\? allowed: fc1$"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), {}, r"^method\.layer: 'null' is not possible"),
    ],
)
def test_what_is_not_possible_is_told_before_any_training(network: nn.Module, settings: dict, message: str):
    how, procedure = method_and_procedure("kddp", **settings)
    with pytest.raises(UserError, match=message):
        procedure.check_network(network, how)


def test_a_method_without_the_penalty_cannot_shrink():
    how, procedure = method_and_procedure("kddp")
    assert isinstance(procedure, NeuronPruning)
    with pytest.raises(UserError, match=r"^method\.parts: method=.* has nothing that silences neurons"):
        procedure.check_network(perceptron(), replace(how, modifiers=(CrossEntropy(),)))


class StopsAt(CrossEntropy):
    """A term of zero that stops the process, as a user would, at one step of all fits."""

    steps: ClassVar[int] = 0
    last: ClassVar[int] = 0

    def terms(self, context: Context) -> dict[str, Term]:
        def value(step: LossInputs) -> Tensor:
            StopsAt.steps += 1
            if StopsAt.steps == StopsAt.last:
                raise Interrupted("here")
            return step.logits.sum() * 0

        return {"stop": Term(value)}


@pytest.mark.parametrize("last", [2, 8, 9, 10, 14, 18])
def test_stopped_in_any_fit_and_continued_is_uninterrupted(tmp_path: Path, last: int):
    """Three steps in each of three epochs in each of two fits; after the ninth step neurons are removed."""
    how, procedure = method_and_procedure("kddp")
    how = replace(how, modifiers=(*how.modifiers, StopsAt()))
    outcomes = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        StopsAt.steps, StopsAt.last = 0, last if name == "stopped" else 0
        given = spec(folder, checkpoint_seconds=0.0)
        if name == "stopped":
            with pytest.raises(Interrupted):
                procedure.run(dying(), how, inputs(), given, backend())
            StopsAt.last = 0
        outcomes.append(procedure.run(dying(), how, inputs(), given, backend()))
    # As many steps as the whole run and the one that was cut short.
    assert StopsAt.steps == 2 * EPOCHS * 3 + 1
    whole, stopped = outcomes
    for (name, one), two in zip(whole.network.state_dict().items(), stopped.network.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    timeless = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in outcome.progress.history]
        for outcome in outcomes
    ]
    assert timeless[0] == timeless[1]
    assert whole.figures == stopped.figures
