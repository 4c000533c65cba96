"""Langevin dynamics: the step by hand, a posterior that is known in closed form, and a run that keeps samples."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import (
    BOTH_WAYS,
    CLASSES,
    backend,
    dataset,
    generator,
    method,
    no_figures,
    normal,
    perceptron,
    split,
)
from helpers.trainings import row
from torch import nn
from torch.distributions import Normal

from kdx.checks import check_method
from kdx.config.compose import compose_config
from kdx.config.schema import TrainerSettings
from kdx.device.backend import has_compiler
from kdx.errors import UserError
from kdx.measure import measure
from kdx.measure.footprint import dense_bytes, parameter_count
from kdx.methods.fit import FitSpec, TrainingInputs
from kdx.methods.langevin import LangevinDynamics, PosteriorSampling, normal_prior
from kdx.methods.modifier import Context
from kdx.methods.procedure import FitResult
from kdx.models.ensemble import Ensemble
from kdx.runs.folder import RunFolder
from kdx.storage.tensors import load_weights, save_weights, template_of
from kdx.training.learner import TrainSpec
from kdx.training.noise import NoiseSource
from kdx.training.objective import Langevin, Objective, Term
from kdx.training.state import State
from kdx.training.step import Batch, make_step
from kdx.training.trainer import train


@BOTH_WAYS
def test_one_step_by_hand(eager: bool):
    """theta - eta/2 (N times the gradient of the mean cross entropy + lambda theta) + sqrt(eta) noise, in float64."""
    examples, eta, precision = 50, 1e-3, 3.0
    how = method("sgld", eta=eta, prior=precision)
    student, given = perceptron().double(), split(8)
    images = given.images.double()
    objective = how.objective(student, None, examples)
    cross_entropy = F.cross_entropy(student(images), given.labels)
    names, values = zip(*student.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(cross_entropy, values), strict=True))
    noise = NoiseSource(student, images, generator(1), objective.noise_specs).draw()
    expected = {
        name: value.detach()
        - eta / 2 * (examples * gradients[name] + precision * value.detach())
        + eta**0.5 * noise[f"langevin/{name}"]
        for name, value in student.named_parameters()
    }
    state = State.of(student, len(objective.terms), objective.langevin)
    step = make_step(student, objective, eager=eager, autocast=None)
    step(state, Batch(images, given.labels, None), noise, row(objective, time=0.0, dtype=torch.float64))
    for name, value in state.parameters.items():
        # The logits go to the loss in float32.
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-7)
    assert not state.first
    assert not state.second


@BOTH_WAYS
def test_the_others_are_learnt_as_if_nobody_were_sampled(eager: bool):
    def trained(sampled: dict[str, Langevin]) -> State:
        student, given = perceptron(), split(8)
        terms = {"cross_entropy": Term(lambda step: F.cross_entropy(step.logits, step.labels))}
        draws = LangevinDynamics(eta=1.0, prior=1.0, decay=0.0, decay_epochs=1.0).noise_specs(Context(student, None, 8))
        objective = Objective(terms, hyperparameters={"eta": lambda _: 1e-2}, noise_specs=draws, langevin=sampled)
        noise = NoiseSource(student, given.images, generator(1), draws).draw()
        state = State.of(student, 1, sampled)
        step = make_step(student, objective, eager=eager, autocast=None)
        step(state, Batch(given.images, given.labels, None), noise, row(objective, time=0.0))
        return state

    name = "fc1.weight"
    plain, mixed = trained({}), trained({name: Langevin(f"langevin/{name}", "eta", 8)})
    for other, value in plain.parameters.items():
        assert torch.equal(value, mixed.parameters[other]) == (other != name)
    assert plain.first.keys() - mixed.first.keys() == {name}


@BOTH_WAYS
def test_the_samples_are_those_of_a_known_posterior(eager: bool):
    """y = theta x + N(0, 1) with theta ~ N(0, 1/lambda): precision A = sum x^2 + lambda, mean sum xy / A.

    Every output of a layer is a chain of its own. At this step size the chain's variance is 1 / (A (1 - eta A / 4)).
    """
    chains, examples, precision = 4000, 10, 2.0
    inputs = normal(examples, 1, 1, 1, seed=0)
    targets = 1.5 * inputs.flatten() + normal(examples, seed=1)
    total = inputs.square().sum().item() + precision
    mean = (inputs.flatten() * targets).sum().item() / total
    eta = 0.2 / total
    student = nn.Sequential(nn.Flatten(), nn.Linear(1, chains, bias=False))
    part = LangevinDynamics(eta=eta, prior=precision, decay=0.0, decay_epochs=1.0)
    context = Context(student, None, examples)
    # The labels carry the targets: a sum over the chains, a mean over the examples.
    residual = Term(lambda step: (step.logits - step.labels[:, None]).square().sum(dim=1).mean() / 2)
    objective = Objective(
        {"residual": residual, **part.terms(context)},
        hyperparameters=part.hyperparameters(),
        noise_specs=part.noise_specs(context),
        langevin=part.langevin(context),
    )
    noise = NoiseSource(student, inputs, generator(2), objective.noise_specs)
    state = State.of(student, 2, objective.langevin)
    step = make_step(student, objective, eager=eager, autocast=None)
    for _ in range(150):  # 0.9^150: nothing is left of the beginning.
        step(state, Batch(inputs, targets, None), noise.draw(), row(objective, time=0.0))
    samples = state.parameters["1.weight"].flatten().double()
    variance = 1 / (total * (1 - eta * total / 4))
    assert samples.mean().item() == pytest.approx(mean, abs=4 * (variance / chains) ** 0.5)
    assert samples.var().item() == pytest.approx(variance, rel=4 * (2 / chains) ** 0.5)


def test_the_prior_is_a_normal_density():
    """Differences of the term are those of the log density, divided by the number of examples."""
    one, two = ([normal(4, 3, seed=seed, dtype=torch.float64), normal(3, seed=seed + 1)] for seed in (0, 5))

    def density(parameters: list[torch.Tensor]) -> float:
        return sum(Normal(0.0, 1.0).log_prob(value.double()).sum().item() for value in parameters)

    difference = (normal_prior(one, 20) - normal_prior(two, 20)).item()
    assert difference == pytest.approx((density(two) - density(one)) / 20, rel=1e-6)


def test_the_schedule_is_that_of_welling_and_teh():
    """A (b + t)^-0.55 with a = eta b^0.55."""
    eta, b = 4e-6, 7.0
    part = LangevinDynamics(eta=eta, prior=1.0, decay=0.55, decay_epochs=b)
    schedule = part.hyperparameters()["eta"]
    for epoch in (0.0, 0.5, 3.0, 100.0):
        assert schedule(epoch) == pytest.approx(eta * b**0.55 * (b + epoch) ** -0.55, rel=1e-12)
    constant = LangevinDynamics(eta=eta, prior=1.0, decay=0.0, decay_epochs=1.0).hyperparameters()["eta"]
    assert constant(50.0) == eta


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler (g++ or clang++)")
def test_compiled_sampling_is_eager_sampling(tmp_path: Path):
    results = []
    for compiled in (False, True):
        how, examples, student = method("sgld", eta=1e-3), split(12), perceptron()
        objective = how.objective(student, None, len(examples))
        trainer = TrainerSettings(epochs=3, batch_size=4, lr=2e-3, hold=0.5, patience=None, checkpoint_seconds=1e9)
        logits = normal(12, CLASSES, seed=4)
        training = partial(
            TrainSpec,
            title="miniature",
            identity="miniature",
            examples=examples,
            teacher_logits=logits,
            trainer=trainer,
            seed=0,
            checkpoint=tmp_path / f"{compiled}",
        )
        progress = train(training(student, objective, no_figures), replace(backend(), compile=compiled))
        results.append((student.state_dict(), progress.history))
    for name, value in results[0][0].items():
        torch.testing.assert_close(value, results[1][0][name], rtol=0, atol=1e-5)
    assert results[1][1][-1]["eta"] == 1e-3
    assert "lr" not in results[1][1][-1]


EPOCHS, BURN_IN, SAMPLES = 6, 2, 2


def spec(folder: Path) -> FitSpec:
    trainer = TrainerSettings(epochs=EPOCHS, batch_size=4, lr=1.0, hold=0.5, patience=None, checkpoint_seconds=0.0)
    return FitSpec("miniature", trainer, 0, RunFolder(folder))


def sampled(folder: Path, given: TrainingInputs | None = None) -> FitResult:
    inputs = given or TrainingInputs(dataset(split(13)))
    how = method("sgld", eta=1e-3)
    return PosteriorSampling(burn_in=BURN_IN, samples=SAMPLES).run(perceptron(), how, inputs, spec(folder), backend())


def test_the_answer_is_the_averaged_prediction():
    members, images = [perceptron(seed=seed) for seed in range(3)], normal(5, 1, 6, 6, seed=9)
    expected = sum(F.softmax(member(images).double(), dim=1) for member in members) / 3
    answer = Ensemble(members)(images)
    torch.testing.assert_close(answer.exp().double(), expected)
    torch.testing.assert_close(answer.exp().sum(dim=1), torch.ones(5))
    one = Ensemble(members[:1])(images)
    torch.testing.assert_close(one, F.log_softmax(members[0](images), dim=1))


def test_an_ensemble_of_confident_networks_does_not_overflow():
    member = perceptron()
    with torch.no_grad():
        member.fc2.weight.mul_(1e4)
    assert Ensemble([member, perceptron(seed=1)])(normal(50, 1, 6, 6, seed=1)).isfinite().all()


def test_an_ensemble_is_measured_saved_and_loaded_as_all_its_members(tmp_path: Path):
    member = perceptron()
    with torch.no_grad():
        member.fc1.weight[:, :10] = 0.0
    ensemble = Ensemble([member, perceptron(seed=1), perceptron(seed=2)])
    measured = measure(ensemble, member, dataset(split(20)), torch.device("cpu"), latency_seconds=0.05)
    names = [f"member{number}.fc{layer}" for number in (1, 2, 3) for layer in (1, 2)]
    assert [row.layer for row in measured.layers] == names
    assert measured.figures["parameters"] == 3 * parameter_count(member)
    assert measured.figures["dense_bytes"] == 3 * dense_bytes(member)
    assert measured.figures["multiplications"] == 3 * (36 * 5 + 5 * 4)
    assert measured.figures["neurons"] == 3 * (36 + 5)
    assert measured.figures["nonzero_neurons_by_layer"] == "26-5-36-5-36-5"
    assert measured.figures["latency_ms"] is not None
    path, images = tmp_path / "student.safetensors", normal(5, 1, 6, 6, seed=9)
    save_weights(path, ensemble)
    assert torch.equal(load_weights(path, template_of(ensemble))(images), ensemble(images))


@pytest.mark.parametrize(
    ("epochs", "burn_in", "samples", "kept"),
    [(100, None, 10, [55, 60, 65, 70, 75, 80, 85, 90, 95, 100]), (6, 2, 2, [4, 6]), (3, 1, 2, [2, 3]), (5, 0, 1, [5])],
)
def test_samples_are_evenly_spaced_after_the_burn_in(epochs: int, burn_in: int | None, samples: int, kept: list[int]):
    assert PosteriorSampling(burn_in=burn_in, samples=samples).epochs_kept(epochs) == kept


@pytest.mark.parametrize(
    ("burn_in", "samples", "message"),
    [(3, 2, "method.samples: 2 .* allowed: 1 to 1"), (4, 1, "method.burn_in: 4 .* allowed: less than that")],
)
def test_a_run_too_short_for_its_samples_is_refused(burn_in: int, samples: int, message: str):
    with pytest.raises(UserError, match=message):
        PosteriorSampling(burn_in=burn_in, samples=samples).epochs_kept(4)


def test_there_is_no_best_epoch_to_wait_for():
    with pytest.raises(UserError, match=r"^trainer\.patience: 3 is not allowed with method=sgld, which keeps samples"):
        check_method(compose_config(["method=sgld", "trainer.patience=3"]))


@pytest.mark.parametrize("name", ["sgld", "bdk"])
def test_samples_are_not_averaged(name: str):
    with pytest.raises(
        UserError, match=rf"^trainer\.average: 0\.9 is not allowed with method={name}, .*; allowed: null$"
    ):
        check_method(compose_config([f"method={name}", "trainer.average=0.9"]))


class Stopped(Exception): ...


class StoppingAfter:
    """Stands for a figure of the history that is taken after so many epochs, and not after the next."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def __call__(self, *_arguments: object) -> float:
        if not self.left:
            raise Stopped
        self.left -= 1
        return 0.0


@pytest.mark.parametrize("epochs", [1, 3, 4, 5])
def test_stopped_between_samples_and_continued_is_uninterrupted(tmp_path: Path, epochs: int, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = sampled(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("kdx.methods.fit.percent_zero", StoppingAfter(epochs))
        with pytest.raises(Stopped):
            sampled(tmp_path / "stopped")
    # The sample of an epoch is written before the epoch's figures are taken.
    assert (tmp_path / "stopped" / "checkpoint-sample4.safetensors").exists() == (epochs >= 3)
    continued = sampled(tmp_path / "stopped")
    assert _equal(whole.network, continued.network)
    assert [row["cross_entropy"] for row in whole.progress.history] == [
        row["cross_entropy"] for row in continued.progress.history
    ]


def test_the_members_are_the_samples_of_their_epochs(tmp_path: Path):
    outcome = sampled(tmp_path)
    assert isinstance(outcome.network, Ensemble)
    members = list(outcome.network.children())
    assert len(members) == SAMPLES
    assert not _equal(members[0], members[1])
    # A run that ends where the first sample was drawn ends with that sample.
    (tmp_path / "shorter").mkdir()
    shorter = spec(tmp_path / "shorter").at("", epochs=4)
    first = PosteriorSampling(burn_in=BURN_IN, samples=1).run(
        perceptron(), method("sgld", eta=1e-3), TrainingInputs(dataset(split(13))), shorter, backend()
    )
    assert _equal(next(first.network.children()), members[0])


def _equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
