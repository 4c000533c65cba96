"""Noisy Teachers: the loss and its noise against simulation, fixed noise, decay and dropout beside it."""

import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.miniature import (
    CLASSES,
    backend,
    convolutional,
    dataset,
    generator,
    method,
    normal,
    perceptron,
    split,
    step_of,
)
from torch import Tensor

from kdx.config.compose import compose_config
from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Split
from kdx.errors import Interrupted, UserError
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.methods.logit_regression import Regression, regression_loss
from kdx.methods.method import Method
from kdx.methods.modifier import Context
from kdx.models import build_model
from kdx.models.layers import NoisyDropout
from kdx.rng import make_generator
from kdx.runs.folder import RunFolder
from kdx.training.noise import NoiseSource
from kdx.training.objective import LossInputs, Term

ROWS = 16


def steps(name: str, count: int, **settings) -> Iterator[tuple[LossInputs, Tensor]]:
    """Steps with the noise that the trainer would draw, and the unweighted term of each; logits are always the same."""
    how, examples = method(name, **settings), split(ROWS)
    student = how.prepare(perceptron())
    objective = how.objective(student, None, ROWS)
    source = NoiseSource(student, examples.images, generator(5), objective.noise_specs)
    given = step_of(student, objective, examples, normal(ROWS, CLASSES, seed=3))
    for _ in range(count):
        noise = {key: value.clone() for key, value in source.draw().items()}
        step = LossInputs(
            given.logits, given.labels, given.teacher_logits, given.parameters, given.hyperparameters, {}, noise
        )
        yield step, objective.terms["regression"].value(step)


def noisy_logits(count: int, **settings) -> Tensor:
    """z' / z of so many steps: (count, rows, classes), from the gradient, which in the student's logits is g - z'."""
    ratios = []
    for given, _ in steps("noisy", count, **settings):
        logits = given.logits.clone().requires_grad_()
        step = LossInputs(
            logits, given.labels, given.teacher_logits, given.parameters, given.hyperparameters, {}, given.noise
        )
        term = method("noisy", **settings).modifiers[0].terms(Context(perceptron(), None, ROWS))["regression"]
        (gradient,) = torch.autograd.grad(term.value(step) * ROWS, logits)
        ratios.append((given.logits - gradient) / given.teacher_logits)
    return torch.stack(ratios)


def test_the_loss_by_hand():
    student, target = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert regression_loss(student, target).item() == (1 + 4 + 0 + 4) / (2 * 2)


def test_without_noise_it_is_the_regression_loss():
    for settings in ({"sigma": 0.0}, {"alpha": 0.0}, {"sigma": 0.0, "noise_in": "student"}):
        for step, value in steps("noisy", 2, **settings):
            assert step.teacher_logits is not None
            torch.testing.assert_close(value, regression_loss(step.logits, step.teacher_logits))


@pytest.mark.parametrize("name", ["noisy", "noisy-student"])
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_expected_loss(name: str, per: str):
    """Expected loss: clean loss + alpha sigma^2 |z|^2 / (2B), or the same in g where the noise is in the student."""
    alpha, sigma = 0.3, 0.8
    found = list(steps(name, 6000, alpha=alpha, sigma=sigma, per=per))
    step, losses = found[0][0], torch.stack([value for _, value in found])
    assert step.teacher_logits is not None
    clean = regression_loss(step.logits, step.teacher_logits)
    noisy = step.teacher_logits if name == "noisy" else step.logits
    added = alpha * sigma**2 * noisy.square().sum() / (2 * ROWS)
    error = losses.std() / len(losses) ** 0.5
    assert abs(losses.mean() - clean - added) < 4 * error
    # The test sees the term that it is about.
    assert added > 20 * error


def test_noise_is_normal_and_for_a_fraction_alpha_of_the_samples():
    ratios = noisy_logits(400, alpha=0.3, sigma=0.5)
    hit = ((ratios - 1).abs() > 1e-4).any(dim=2)
    count = hit.numel()
    assert abs(hit.float().mean() - 0.3) < 4 * (0.3 * 0.7 / count) ** 0.5
    xi = ratios[hit] - 1
    assert xi.mean().item() == pytest.approx(0, abs=4 * 0.5 / xi.numel() ** 0.5)
    assert xi.std().item() == pytest.approx(0.5, rel=4 / (2 * xi.numel()) ** 0.5)
    # Every class of a sample has noise of its own.
    assert abs(torch.corrcoef(xi.T) - torch.eye(CLASSES)).max() < 4 / len(xi) ** 0.5


def test_per_batch_there_is_one_vector_for_all_selected_samples():
    ratios = noisy_logits(50, per="batch", alpha=0.5, sigma=0.5)
    hits = ((ratios - 1).abs() > 1e-4).any(dim=2)
    assert 0.3 < hits.float().mean() < 0.7
    for ratio, hit in zip(ratios, hits, strict=True):
        rows = ratio[hit]
        torch.testing.assert_close(rows, rows[:1].expand_as(rows), rtol=1e-3, atol=1e-4)
    assert len(noisy_logits(2, per="sample", alpha=1.0)[0, :, 0].unique()) == ROWS


def test_sigma_is_uniform_in_its_range():
    low, high, count = 0.2, 1.0, 500
    settings = {"sigma": None, "sigma_range": [low, high], "alpha": 1.0, "per": "batch"}
    ratios = noisy_logits(count, **settings)
    xi = torch.stack([step.noise["regression.xi"] for step, _ in steps("noisy", count, **settings)])
    largest = xi.abs().argmax(dim=2, keepdim=True)
    sigmas = ((ratios[:, :1] - 1) / xi).gather(2, largest).flatten()
    assert low - 1e-3 < sigmas.min() < low + 0.02
    assert high - 0.02 < sigmas.max() < high + 1e-3
    deviation = (high - low) / 12**0.5
    assert sigmas.mean().item() == pytest.approx((low + high) / 2, abs=4 * deviation / count**0.5)
    assert sigmas.std().item() == pytest.approx(deviation, rel=0.1)


def test_fixed_noise_has_the_moments_of_the_resampled():
    stored = normal(5000, CLASSES, seed=1)
    fixed = method("noisy", resample=False, sigma=0.7, alpha=0.4)
    ratios = fixed.transform_teacher_logits(stored, seed=3) / stored
    hit = (ratios != 1).any(dim=1)
    assert abs(hit.float().mean() - 0.4) < 4 * (0.4 * 0.6 / 5000) ** 0.5
    assert (ratios[hit] - 1).std().item() == pytest.approx(0.7, rel=0.05)
    assert torch.equal(fixed.transform_teacher_logits(stored, seed=3), fixed.transform_teacher_logits(stored, seed=3))
    assert not torch.equal(
        fixed.transform_teacher_logits(stored, seed=3), fixed.transform_teacher_logits(stored, seed=4)
    )
    assert method("noisy").transform_teacher_logits(stored, seed=3) is stored
    assert method("kd").transform_teacher_logits(stored, seed=3) is stored


def test_fixed_noise_is_that_of_the_image_however_it_is_shifted():
    """Of an image and of its mirror image it is another; without shifts it is what it always was."""
    stored, fixed = normal(18 * 50, CLASSES, seed=1), method("noisy", resample=False, sigma=0.7, alpha=0.5)
    ratios = (fixed.transform_teacher_logits(stored, 3, 25) / stored).view(36, 25, CLASSES)
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios))
    images = fixed.transform_teacher_logits(stored[:36], seed=3) / stored[:36]
    torch.testing.assert_close(ratios[:, 0], images)
    hit = (images - 1).abs().amax(dim=1) > 1e-3
    assert len(images[hit].unique(dim=0)) == hit.sum() > 10
    rounded = fixed.transform_teacher_logits(stored.half(), 3, 25)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, fixed.transform_teacher_logits(stored.half().float(), 3, 25))


def test_fixed_noise_without_shifts_is_what_it_always_was():
    stored = normal(20, CLASSES, seed=1)
    drawn = make_generator(3, "targets")
    xi = torch.randn(stored.shape, generator=drawn)
    selected = torch.rand((20, 1), generator=drawn) < 0.4
    found = method("noisy", resample=False, sigma=0.7, alpha=0.4).transform_teacher_logits(stored, seed=3)
    assert torch.equal(found, stored * (1 + 0.7 * xi * selected))


class Recorded(Regression):
    """Keeps the target of every sample (they are told apart by their labels), and stops the training at a step."""

    def watch(self, seen: dict[int, list[Tensor]], stop_at: int | None) -> Method:
        term, count = super().terms(Context(perceptron(), None, ROWS))["regression"], 0

        def value(step: LossInputs) -> Tensor:
            nonlocal count
            count += 1
            if count == stop_at:
                signal.raise_signal(signal.SIGINT)
            assert step.teacher_logits is not None
            noisy = step.teacher_logits if not self.resample else self._noisy(step.teacher_logits, step)
            for label, row in zip(step.labels.tolist(), noisy, strict=True):
                seen[label].append(row.clone())
            return term.value(step)

        object.__setattr__(self, "terms", lambda context: {"regression": Term(value)})
        return Method("noisy", (self,))


def recorded(folder: Path, stop_at: int | None, **settings) -> tuple[Mapping[int, list[Tensor]], dict[str, Tensor]]:
    """The targets of every sample, and the student, after three epochs that may be interrupted once."""
    seen: dict[int, list[Tensor]] = defaultdict(list)
    fields = dict(method("noisy", **settings).modifiers[0])
    examples = Split(split(ROWS).images, torch.arange(ROWS))
    inputs = TrainingInputs(dataset(examples), None, normal(ROWS, CLASSES, seed=4))
    trainer = TrainerSettings(epochs=3, batch_size=8, lr=1e-3, hold=1.0, patience=None, checkpoint_seconds=1e9)
    folder.mkdir()
    spec = FitSpec("miniature", trainer, 7, RunFolder(folder))
    if stop_at is not None:
        with pytest.raises(Interrupted):
            fit(perceptron(), Recorded(**fields).watch(seen, stop_at), inputs, spec, backend())
    student, _ = fit(perceptron(), Recorded(**fields).watch(seen, None), inputs, spec, backend())
    return seen, student.state_dict()


def test_fixed_noise_is_the_same_in_every_epoch_and_after_an_interruption(tmp_path: Path):
    settings = {"resample": False, "alpha": 1.0}
    whole, student = recorded(tmp_path / "whole", None, **settings)
    stored = normal(ROWS, CLASSES, seed=4)
    for label in range(ROWS):
        assert len(whole[label]) == 3
        assert all(torch.equal(target, whole[label][0]) for target in whole[label])
        assert not torch.equal(whole[label][0], stored[label])
    stopped, again = recorded(tmp_path / "stopped", 3, **settings)
    assert all(torch.equal(target, whole[label][0]) for label in range(ROWS) for target in stopped[label])
    assert all(torch.equal(student[name], again[name]) for name in student)


def test_resampled_noise_is_another_in_every_epoch_and_goes_on_after_an_interruption(tmp_path: Path):
    whole, student = recorded(tmp_path / "whole", None, alpha=1.0)
    for targets in whole.values():
        assert len(torch.stack(targets).unique(dim=0)) == 3
    _, again = recorded(tmp_path / "stopped", 4, alpha=1.0)
    assert all(torch.equal(student[name], again[name]) for name in student)


@contextmanager
def refused(*keys: str) -> Iterator[None]:
    with pytest.raises(UserError) as caught:
        yield
    for key in keys:
        assert key in str(caught.value)


def test_settings_that_do_not_fit_together_are_told_with_both_keys():
    with refused("method.sigma=0.5", "method.sigma_range=[0.01, 1.0]"):
        method("noisy", sigma_range=[0.01, 1.0])
    with refused("method.sigma=null", "method.sigma_range=null"):
        method("noisy", sigma=None)
    with refused("method.per=batch", "method.resample=false"):
        method("noisy", resample=False, per="batch")
    with refused("method.sigma_range=[0.1, 1.0]", "method.resample=false"):
        method("noisy", resample=False, sigma=None, sigma_range=[0.1, 1.0])
    with refused("method.noise_in=student", "method.resample=false"):
        method("noisy-student", resample=False)
    with refused("method.sigma_range=[1.0, 0.1]"):
        method("noisy", sigma=None, sigma_range=[1.0, 0.1])


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"sigma": 0.0}, {"alpha", "noise_in", "per", "resample"}),
        ({"alpha": 0.0}, {"sigma", "sigma_range", "noise_in", "per", "resample"}),
        ({}, set()),
        ({"sigma": None, "sigma_range": [0.0, 1.0]}, set()),
    ],
)
def test_how_noise_is_made_where_there_is_none_has_no_effect(settings: dict, idle: set[str]):
    # It has no labels, so that smoothing them has no effect either.
    assert method("noisy-student", **settings).unused_settings().keys() == {"trainer.label_smoothing"} | {
        f"method.{key}" for key in idle
    }


def test_weight_decay_by_hand():
    how = method("noisy", l2=0.25)
    student = how.prepare(convolutional())
    objective = how.objective(student, None, ROWS)
    examples = split(ROWS, channels=2)
    step = step_of(student, objective, examples, normal(ROWS, CLASSES, seed=3))
    weights = [student.get_parameter(f"{name}.weight") for name in ("conv1", "conv2", "fc1")]
    by_hand = 0.5 * sum(value**2 for weight in weights for value in weight.flatten().tolist())
    assert objective.terms["l2"].value(step).item() == pytest.approx(by_hand, rel=1e-5)
    assert objective.terms["l2"].weight == "l2"
    assert step.hyperparameters["l2"].item() == 0.25
    assert "l2" not in method("noisy").objective(student, None, ROWS).terms


def test_variances_and_biases_do_not_decay():
    how = method("svd", parts=["labels", "variational", "l2"], l2=0.1)
    student = how.prepare(perceptron())
    objective = how.objective(student, None, ROWS)
    step = step_of(student, objective, split(ROWS), normal(ROWS, CLASSES, seed=3))
    term = objective.terms["l2"].value(step)
    gradients = torch.autograd.grad(term, list(student.parameters()), allow_unused=True)
    for (name, parameter), gradient in zip(student.named_parameters(), gradients, strict=True):
        if name in ("fc1.weight", "fc2.weight"):
            torch.testing.assert_close(gradient, parameter)
        else:
            assert gradient is None, name


def dropouts(name: str, rate: float) -> list[str]:
    settings = compose_config([f"student={name}"]).student
    student = method("noisy", fc_dropout=rate).prepare(build_model(settings, (3, 32, 32), 10, seed=0))
    return [name for name, layer in student.named_modules() if isinstance(layer, NoisyDropout) and layer.rate == rate]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("lenet5-caffe", ["fc1_relu.1"]),
        ("noisy-cifar", ["fc1_relu.1"]),
        ("lenet-300-100", ["fc1_relu.1", "fc2_relu.1"]),
        ("kddp-sn-50", ["fc1_relu.1"]),
    ],
)
def test_dropout_behind_fully_connected_layers_only(name: str, places: list[str]):
    assert dropouts(name, 0.2) == places
    assert dropouts(name, 0.0) == []


def test_dropout_where_there_is_no_fully_connected_layer_is_the_users_mistake():
    with pytest.raises(UserError, match=r"^method\.fc_dropout: 0\.2 is not allowed with this student.*allowed: 0$"):
        dropouts("nin", 0.2)


def test_the_dropout_is_gone_afterwards():
    how = method("noisy", fc_dropout=0.2)
    network = how.finalize(how.prepare(perceptron()))
    assert not any(isinstance(layer, NoisyDropout) for layer in network.modules())
    images = split(ROWS).images
    assert torch.equal(network(images), perceptron()(images))
