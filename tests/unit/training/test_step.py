"""The training step: Adam against torch's, what it reads and what it changes."""

from copy import deepcopy

import pytest
import torch
from helpers.miniature import BOTH_WAYS, CLASSES, convolutional, generator, method, normal, perceptron, randomise, split
from helpers.trainings import row
from torch import Tensor, nn
from torch.func import functional_call

from kdx.methods.method import Method
from kdx.training.noise import NoiseSource
from kdx.training.objective import LossInputs, Objective, Term
from kdx.training.state import State
from kdx.training.step import Batch, hyperparameter_names, make_step

STEPS = 50


def batch(count: int = 8, seed: int = 0, channels: int = 1, dtype: torch.dtype = torch.float32) -> Batch:
    examples = split(count, seed, channels)
    return Batch(examples.images.to(dtype), examples.labels, normal(count, CLASSES, seed=seed + 2).to(dtype))


def rate(step: int) -> float:
    """A learning rate that is not constant."""
    return 2e-3 * (1 - step / (2 * STEPS))


class Case:
    """A student under st-vbd, whose variances learn five times as fast as its weights."""

    def __init__(self, network: nn.Module, channels: int, dtype: torch.dtype) -> None:
        self.how: Method = method("st-vbd", log_sigma2_lr=5.0, log_sigma2_init=-3.0)
        self.student = self.how.prepare(network).to(dtype)
        self.objective = self.how.objective(self.student, randomise(perceptron(hidden=9), 7).to(dtype), 10)
        self.channels, self.dtype = channels, dtype

    def batch(self, index: int) -> Batch:
        return batch(seed=10 * index, channels=self.channels, dtype=self.dtype)

    def noise(self, index: int) -> dict[str, Tensor]:
        return NoiseSource(self.student, self.batch(0).images, generator(index)).draw()


def with_kdx(case: Case, eager: bool) -> tuple[dict[str, Tensor], Tensor]:
    state = State.of(case.student, len(case.objective.terms))
    step = make_step(case.student, case.objective, eager=eager, autocast=None)
    for index in range(STEPS):
        step(state, case.batch(index), case.noise(index), row(case.objective, index + 1, rate(index), dtype=case.dtype))
    return {name: value.clone() for name, value in state.parameters.items()}, state.sums


def with_torch(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """The same steps with torch.optim.Adam, its two groups of parameters, and backward()."""
    student, objective = case.student, case.objective
    parameters = dict(student.named_parameters())
    variances = [value for name, value in parameters.items() if name.endswith("log_sigma2")]
    others = [value for name, value in parameters.items() if not name.endswith("log_sigma2")]
    optimiser = torch.optim.Adam([{"params": others}, {"params": variances}], lr=1.0, foreach=False)
    sums = torch.zeros(1 + len(objective.terms))
    for index in range(STEPS):
        given, lr = case.batch(index), rate(index)
        for group, factor in zip(optimiser.param_groups, (1.0, 5.0), strict=True):
            group["lr"] = lr * factor
        numbers = dict(
            zip(hyperparameter_names(objective), row(objective, index + 1, lr, dtype=case.dtype), strict=True)
        )
        logits = functional_call(student, case.noise(index), (given.images,)).float()
        total, terms = objective.loss(LossInputs(logits, given.labels, given.teacher_logits, parameters, numbers))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        sums += torch.cat([total.detach().reshape(1), terms])
    return {name: value.detach().clone() for name, value in parameters.items()}, sums


# Weights move by up to 0.1 in all. Rounding of the gradients is carried on from step to step; in float64 what is left
# is the rounding of the logits, which the step hands to the loss in float32.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-7}


@BOTH_WAYS
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("network", "channels"), [(perceptron, 1), (convolutional, 2)])
def test_fifty_steps_are_those_of_torch(network, channels: int, dtype: torch.dtype, eager: bool):
    mine, sums = with_kdx(Case(network(), channels, dtype), eager)
    theirs, their_sums = with_torch(Case(network(), channels, dtype))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=0, atol=TOLERANCE[dtype], msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(sums, their_sums, rtol=1e-3 if dtype == torch.float32 else 1e-5, atol=1e-5)


@BOTH_WAYS
def test_the_first_step_moves_every_weight_by_its_rate(eager: bool):
    """Adam's first step is lr times the sign of the gradient: the factor of the variances shows undisguised."""
    case = Case(perceptron(), 1, torch.float64)
    before = {name: value.detach().clone() for name, value in case.student.named_parameters()}
    state = State.of(case.student, len(case.objective.terms))
    step = make_step(case.student, case.objective, eager=eager, autocast=None)
    step(state, case.batch(0), case.noise(0), row(case.objective, 1, 1e-3, dtype=torch.float64))
    for name, value in state.parameters.items():
        expected = 5e-3 if name.endswith("log_sigma2") else 1e-3
        # Epsilon makes the step of a weight with a small gradient shorter, so look at the longest.
        assert (value - before[name]).abs().max().item() == pytest.approx(expected, rel=1e-4)


@BOTH_WAYS
def test_at_rate_zero_nothing_moves(eager: bool):
    case = Case(perceptron(), 1, torch.float32)
    before = {name: value.clone() for name, value in case.student.state_dict().items()}
    state = State.of(case.student, len(case.objective.terms))
    step = make_step(case.student, case.objective, eager=eager, autocast=None)
    step(state, case.batch(0), case.noise(0), row(case.objective, 1, 0.0))
    assert all(torch.equal(value, before[name]) for name, value in case.student.state_dict().items())


def test_zero_steps_change_nothing():
    case = Case(perceptron(), 1, torch.float32)
    before = {name: value.clone() for name, value in case.student.state_dict().items()}
    state = State.of(case.student, len(case.objective.terms))
    make_step(case.student, case.objective, eager=True, autocast=None)
    case.noise(0)
    assert all(torch.equal(value, before[name]) for name, value in case.student.state_dict().items())
    assert not any(value.any() for value in (*state.first.values(), *state.second.values(), state.sums))


@BOTH_WAYS
def test_the_student_itself_is_what_learns(eager: bool):
    case = Case(perceptron(), 1, torch.float32)
    before = deepcopy(case.student)
    state = State.of(case.student, len(case.objective.terms))
    step = make_step(case.student, case.objective, eager=eager, autocast=None)
    step(state, case.batch(0), case.noise(0), row(case.objective, 1, 1e-3))
    for old, new in zip(before.parameters(), case.student.parameters(), strict=True):
        assert not torch.equal(old, new)


@BOTH_WAYS
def test_sums_are_the_total_and_every_term(eager: bool):
    objective = Objective(
        terms={
            "one": Term(lambda step: step.logits.square().mean()),
            "two": Term(lambda step: step.parameters["fc1.weight"].square().sum(), weight="w"),
        },
        hyperparameters={"w": lambda _: 0.25},
    )
    student, given = perceptron(), batch()
    one, two = student(given.images).square().mean().item(), student.fc1.weight.square().sum().item()
    state = State.of(student, 2)
    step = make_step(student, objective, eager=eager, autocast=None)
    step(state, given, {}, row(objective, 1, 0.0))
    assert state.sums.tolist() == pytest.approx([one + 0.25 * two, one, two], rel=1e-5)
    step(state, given, {}, row(objective, 2, 0.0))
    assert state.sums.tolist() == pytest.approx([2 * one + 0.5 * two, 2 * one, 2 * two], rel=1e-5)


@BOTH_WAYS
def test_the_step_is_a_function_of_its_arguments(eager: bool):
    """Same arguments, same result: no generator, clock or state of its own."""
    results = []
    for attempt in range(2):
        torch.manual_seed(attempt)
        case = Case(perceptron(), 1, torch.float32)
        state = State.of(case.student, len(case.objective.terms))
        step = make_step(case.student, case.objective, eager=eager, autocast=None)
        for index in range(3):
            step(state, case.batch(index), case.noise(index), row(case.objective, index + 1, 1e-3))
        results.append(state.tensors())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_weights():
    case = Case(perceptron(), 1, torch.float32)
    seen = []
    objective = Objective(
        {"probe": Term(lambda step: (seen.append(step.logits.dtype), step.logits.square().mean())[1])}
    )
    losses = []
    for autocast in (None, "cpu"):
        state = State.of(case.student, 1)
        step = make_step(case.student, objective, eager=True, autocast=autocast)
        step(state, case.batch(0), case.noise(0), row(objective, 1, 0.0))
        losses.append(state.sums[0].item())
        assert all(value.dtype == torch.float32 for value in state.parameters.values())
    assert seen == [torch.float32, torch.float32]
    # bfloat16 has eight bits: its products are near, and not the same.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
