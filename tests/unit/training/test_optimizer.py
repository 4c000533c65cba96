"""The options of the trainer in the step: optimizers, weight decay and averages against torch's and sums by hand."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import (
    BOTH_WAYS,
    CLASSES,
    SIDE,
    backend,
    generator,
    method,
    named,
    no_figures,
    normal,
    perceptron,
    split,
)
from helpers.trainings import training, two
from torch import Tensor, nn
from torch.func import functional_call

from kdx.config.schema import TrainerSettings
from kdx.training.learner import Learner
from kdx.training.noise import NoiseSource
from kdx.training.objective import LossInputs, Objective, Term
from kdx.training.optimizer import learning_rate
from kdx.training.step import Batch, hyperparameter_names, make_step
from kdx.training.trainer import train

STEPS, EXAMPLES, LOG_SIGMA2_LR = 20, 24, 5.0


def normalised() -> nn.Sequential:
    """36-5-4 with a batch norm behind the hidden layer, which needs no bias: it would have no gradient but rounding."""
    return named(
        {
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(SIDE * SIDE, 5, bias=False),
            "bn1": nn.BatchNorm1d(5),
            "fc1_relu": nn.ReLU(),
            "fc2": nn.Linear(5, CLASSES),
        },
        seed=0,
    )


def trainer(**settings: Any) -> TrainerSettings:
    values = {"epochs": 4, "batch_size": 4, "lr": 1e-2, "hold": 0.5, "patience": None, "checkpoint_seconds": 1e9}
    return TrainerSettings(**(values | settings))


class Case:
    """A student with variances, biases and a batch norm, and what it is given in each step."""

    def __init__(self, dtype: torch.dtype, **settings: Any) -> None:
        self.how = method("kd-vbd", log_sigma2_lr=LOG_SIGMA2_LR, log_sigma2_init=-3.0, warmup_start=0.0)
        self.student = self.how.prepare(normalised()).to(dtype)
        objective = self.how.objective(self.student, None, EXAMPLES)
        examples = split(EXAMPLES)
        examples = replace(examples, images=examples.images.to(dtype))
        logits = normal(EXAMPLES, CLASSES, seed=4)
        given = partial(training(Path(), examples, logits), trainer=trainer(**settings))
        self.member, self.dtype = Learner(given(self.student, objective, no_figures)), dtype
        rows = np.concatenate([self.member.schedule(epoch) for epoch in range(4)])[:STEPS]
        assert len(rows) == STEPS
        self.rows = torch.from_numpy(rows).to(dtype)

    def batch(self, index: int) -> Batch:
        return self.member.spec.batch(torch.arange(4) + 4 * (index % 6))

    def noise(self, index: int) -> dict[str, Tensor]:
        return NoiseSource(self.student, self.batch(0).images, generator(index)).draw()

    def numbers(self, index: int) -> dict[str, Tensor]:
        return dict(
            zip(hyperparameter_names(self.member.objective, self.member.optimizer), self.rows[index], strict=True)
        )

    def with_kdx(self, eager: bool) -> dict[str, Tensor]:
        member = self.member
        step = make_step(self.student, member.objective, eager=eager, autocast=None, optimizer=member.optimizer)
        for index in range(STEPS):
            step(member.state, self.batch(index), self.noise(index), self.rows[index])
        return {name: value.clone() for name, value in member.state.parameters.items()}

    def with_torch(self, kind: type[torch.optim.Optimizer], decay: float, **options: Any) -> dict[str, Tensor]:
        """The same steps with an optimizer of torch's, whose groups are written down here."""
        parameters = dict(self.student.named_parameters())
        weights, variances = ["fc1.weight", "fc2.weight"], ["fc1.log_sigma2", "fc2.log_sigma2"]
        others = [name for name in parameters if name not in weights + variances]
        assert set(others) == {"bn1.weight", "bn1.bias", "fc2.bias"}
        groups = [
            {"params": [parameters[name] for name in names], "weight_decay": own, "factor": factor}
            for names, own, factor in ((weights, decay, 1), (variances, 0.0, LOG_SIGMA2_LR), (others, 0.0, 1))
        ]
        optimizer = kind(groups, lr=1.0, foreach=False, **options)  # type: ignore[call-arg]
        for index in range(STEPS):
            given, numbers = self.batch(index), self.numbers(index)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.member.spec.trainer, index / 6, 1 / 6) * group["factor"]
            logits = functional_call(self.student, self.noise(index), (given.images,)).float()
            total, _ = self.member.objective.loss(
                LossInputs(logits, given.labels, given.teacher_logits, parameters, numbers)
            )
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        return {name: value.detach().clone() for name, value in parameters.items()}


SGD = {"optimizer": "sgd", "lr": 0.05}
CASES: dict[str, tuple[dict[str, Any], type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": ({}, torch.optim.Adam, {}),
    "adamw": ({"weight_decay": 0.3}, torch.optim.AdamW, {}),
    "sgd": (SGD | {"momentum": 0.0}, torch.optim.SGD, {}),
    "momentum": (SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "decay": (
        SGD | {"momentum": 0.8, "weight_decay": 0.1, "schedule": "one-cycle"},
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True},
    ),
}
# Rounding of the gradients is carried on from step to step; in float64 what is left is that of the logits, which the
# step hands to the loss in float32. Every tensor moves by a hundred times as much.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-7}


@BOTH_WAYS
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_torch(case: str, dtype: torch.dtype, eager: bool):
    settings, kind, options = CASES[case]
    mine = Case(dtype, **settings).with_kdx(eager)
    theirs = Case(dtype, **settings).with_torch(kind, settings.get("weight_decay", 0.0), **options)
    before = dict(Case(dtype).student.named_parameters())
    for name, value in mine.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=0, atol=TOLERANCE[dtype], msg=lambda text, name=name: f"{name}: {text}"
        )
        assert (value - before[name]).abs().max() > 100 * TOLERANCE[dtype]


@BOTH_WAYS
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_only_weights_decay(optimizer: str, eager: bool):
    """Without a gradient Adam's decay is the factor 1 - lr weight_decay, and SGD has no gradient but that of L2."""
    case = Case(torch.float64, optimizer=optimizer, weight_decay=0.2, momentum=0.5, schedule="hold", hold=1.0)
    member = case.member
    flat = Objective({"flat": Term(lambda step: 0 * sum(value.sum() for value in step.parameters.values()))})
    before = {name: value.clone() for name, value in member.state.parameters.items()}
    step = make_step(case.student, flat, eager=eager, autocast=None, optimizer=member.optimizer)
    row = torch.stack([case.numbers(0)[name] for name in member.optimizer.numbers])
    step(replace(member.state, sums=torch.zeros(2), broken=torch.zeros(2)), case.batch(0), case.noise(0), row)
    # Nesterov's first step is 1 + momentum times the gradient.
    factor = 1 - 1e-2 * 0.2 * (1.5 if optimizer == "sgd" else 1)
    for name, value in member.state.parameters.items():
        decays = name in ("fc1.weight", "fc2.weight")
        torch.testing.assert_close(value, before[name] * factor if decays else before[name], rtol=1e-12, atol=0)


@BOTH_WAYS
@pytest.mark.parametrize(
    "settings",
    [{"weight_decay": 0.1}, SGD | {"weight_decay": 0.1}, SGD | {"schedule": "one-cycle", "peak": 0.0}],
    ids=["adam", "sgd", "one-cycle"],
)
def test_everything_stands_still_from_a_broken_step_on(settings: dict[str, Any], eager: bool):
    """Weights, momentum and the average, which is that of the network before; only statistics of batches go on."""
    case = Case(torch.float32, average=0.5, **settings)
    member, count = case.member, iter(range(10**6))
    term = Term(lambda step: step.logits.square().mean() * (float("nan") if next(count) == 2 else 1.0))
    objective = replace(member.objective, terms={"term": term})
    state = replace(member.state, sums=torch.zeros(2), broken=torch.zeros(2))
    step = make_step(case.student, objective, eager=eager, autocast=None, optimizer=member.optimizer)
    seen = []
    for index in range(6):
        step(state, case.batch(index), case.noise(index), case.rows[index])
        # Written out, Adam's moments fade.
        groups = ("parameter/", "average/", *(("first/",) if member.optimizer.kind == "sgd" else ()))
        seen.append({name: value.clone() for name, value in state.tensors().items() if name.startswith(groups)})
    assert state.broken.tolist() == [4, 4]
    assert all(torch.equal(value, seen[1][name]) for later in seen[2:] for name, value in later.items())
    assert all(value.isfinite().all() for value in seen[-1].values())
    moved = [name for name, value in seen[1].items() if not torch.equal(value, seen[0][name])]
    names = ("parameter/fc1.weight", "parameter/bn1.weight", "buffer/bn1.running_var", "buffer/bn1.num_batches_tracked")
    assert {"parameter/fc1.weight", *(f"average/{name}" for name in names)} <= set(moved)


@BOTH_WAYS
def test_the_average_is_the_sum_by_hand(eager: bool):
    """sum (1 - d) d^(n - i) theta_i / (1 - d^n) over the steps i up to n; what counts is the last count."""
    d = 0.9
    case = Case(torch.float64, average=d, **SGD)
    member = case.member
    step = make_step(case.student, member.objective, eager=eager, autocast=None, optimizer=member.optimizer)
    seen: list[dict[str, Tensor]] = []
    for index in range(STEPS):
        step(member.state, case.batch(index), case.noise(index), case.rows[index])
        seen.append({name: value.clone() for name, value in member.state.network().items()})
        weights = [(1 - d) * d ** (index - each) / (1 - d ** (index + 1)) for each in range(index + 1)]
        assert sum(weights) == pytest.approx(1, rel=1e-12)
        for name, value in member.state.average.items():
            if value.is_floating_point():
                by_hand = sum(weight * each[name] for weight, each in zip(weights, seen, strict=True))
                torch.testing.assert_close(value, by_hand, rtol=1e-9, atol=1e-12)
            else:
                assert torch.equal(value, seen[-1][name])
    names = {
        "buffer/bn1.running_mean",
        "buffer/bn1.running_var",
        "buffer/bn1.num_batches_tracked",
        "parameter/fc2.bias",
    }
    assert names <= member.state.average.keys()


def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path):
    """It changes no step: the raw weights are those of the same training without it."""

    def run(folder: Path, average: float | None) -> tuple[nn.Module, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
        student, steps, epochs = normalised(), [], []

        def noting(step: LossInputs) -> Tensor:
            steps.append({name: value.detach().clone() for name, value in step.parameters.items()})
            return two(step)

        def evaluate(_epoch: int):
            epochs.append({name: value.detach().clone() for name, value in student.state_dict().items()})
            return dict

        given = partial(training(folder, split(12)), trainer=trainer(average=average, epochs=3))
        train(given(student, Objective({"two": Term(noting)}), evaluate), backend())
        return student, steps, epochs

    raw, steps, _ = run(tmp_path / "raw", None)
    averaged, same_steps, epochs = run(tmp_path / "averaged", 0.8)
    assert all(
        torch.equal(value, other[name])
        for one, other in zip(steps, same_steps, strict=True)
        for name, value in one.items()
    )
    # What each of the nine steps left; the first has the initial weights.
    left = [*steps[1:], {name: value.detach() for name, value in raw.named_parameters()}]
    for name, value in averaged.named_parameters():
        for epoch, seen in enumerate(epochs, 1):
            taken = range(3 * epoch)
            by_hand = sum(
                0.2 * 0.8 ** (taken[-1] - index) / (1 - 0.8 ** len(taken)) * left[index][name] for index in taken
            )
            torch.testing.assert_close(seen[name], by_hand, rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, left[-1][name])
    assert all(torch.equal(value, epochs[-1][name]) for name, value in averaged.state_dict().items())
    assert not torch.equal(averaged.get_buffer("bn1.running_var"), raw.get_buffer("bn1.running_var"))


@pytest.mark.parametrize("peak", [0.0, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("epochs", [1, 4])
def test_one_cycle_is_a_triangle(peak: float, epochs: int):
    """By interpolation: the rise is taken at the end of a step, the fall at its beginning, so that all steps move."""
    settings, steps = trainer(schedule="one-cycle", peak=peak, epochs=epochs, lr=0.5), 10
    times = np.arange(epochs * steps) / steps
    rates = [learning_rate(settings, time, 1 / steps) for time in times]
    top = peak * epochs
    rise = np.interp(times + 1 / steps, [0, top], [0, 0.5]) if peak else np.full(len(times), 0.5)
    fall = np.interp(times, [top, epochs], [0.5, 0]) if peak < 1 else np.full(len(times), 0.5)
    np.testing.assert_allclose(rates, np.minimum(rise, fall), rtol=1e-12)
    assert min(rates) > 0
    assert max(rates) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["vanilla", "kd", "st-vbd", "soft-labels", "kd-mixture", "sgld", "dropout"])
def test_labels_are_smoothed_in_every_cross_entropy_with_them(name: str):
    how = method(name)
    student, examples = how.prepare(perceptron()), split(6)
    logits = normal(6, CLASSES, seed=3, dtype=torch.float64).requires_grad_()
    for amount in (0.0, 0.1, 0.9):
        objective = how.objective(student, perceptron(hidden=9), 6).with_label_smoothing(amount)
        numbers = {
            key: torch.tensor(number(0.0), dtype=torch.float64) for key, number in objective.hyperparameters.items()
        }
        step = LossInputs(logits, examples.labels, None, dict(student.named_parameters()), numbers)
        found = objective.terms["cross_entropy"].value(step)
        expected = F.cross_entropy(logits, examples.labels, label_smoothing=amount)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        pair = [torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (found, expected)]
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-15)


def test_smoothed_labels_by_hand():
    """Two classes, log odds of log 3 and -log 3: the label has 0.95 of the weight at 0.1."""
    logits = torch.tensor([[0.0, np.log(3)], [0.0, np.log(3)]], dtype=torch.float64)
    step = LossInputs(
        logits, torch.tensor([1, 0]), None, {}, {"trainer.label_smoothing": torch.tensor(0.1, dtype=torch.float64)}
    )
    sure, unsure = -np.log(3 / 4), -np.log(1 / 4)
    expected = ((0.95 * sure + 0.05 * unsure) + (0.95 * unsure + 0.05 * sure)) / 2
    assert step.cross_entropy(logits).item() == pytest.approx(expected, rel=1e-12)


def test_a_training_smooths_its_labels(tmp_path: Path):
    """As a teacher's, whose method has the part `labels`."""
    examples, student = split(12), perceptron()
    expected = F.cross_entropy(student(examples.images), examples.labels, label_smoothing=0.2).item()
    given = partial(training(tmp_path, examples), trainer=trainer(label_smoothing=0.2, lr=1e-30, epochs=1))
    progress = train(given(student, method("vanilla").objective(student, None, 12), no_figures), backend())
    assert progress.history[0]["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    assert progress.history[0]["loss"] == pytest.approx(expected, rel=1e-5)
