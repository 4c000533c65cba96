"""Bayesian dark knowledge: two networks in one step, of which one learns from the other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import BOTH_WAYS, backend, dataset, generator, method, normal, perceptron, split
from helpers.trainings import row
from torch import Tensor, nn

from kdx.config.schema import TrainerSettings
from kdx.device.backend import Backend, has_compiler
from kdx.methods.bayesian_dark_knowledge import BayesianDarkKnowledge, NoisyInputs, StudentAndSampler
from kdx.methods.distillation import soft_cross_entropy
from kdx.methods.fit import FitSpec, TrainingInputs
from kdx.methods.procedure import FitResult
from kdx.runs.folder import RunFolder
from kdx.training.noise import NoiseSource
from kdx.training.objective import Objective
from kdx.training.state import State
from kdx.training.step import Batch, make_step

EXAMPLES, INPUT_NOISE, ETA, STUDENT_PRIOR = 30, 0.3, 1e-3, 3.0


def networks() -> StudentAndSampler:
    return StudentAndSampler(perceptron(seed=1).double(), perceptron(hidden=7, seed=2).double(), INPUT_NOISE)


def stepped(both: StudentAndSampler, eager: bool, labels: Tensor) -> tuple[State, dict[str, Tensor], Batch]:
    how = method("bdk", eta=ETA, prior=2.0, student_prior=STUDENT_PRIOR)
    objective = how.objective(how.prepare(both), None, EXAMPLES)
    batch = Batch(split(8).images.double(), labels, None)
    noise = {name: value.clone() for name, value in drawn(both, batch, objective).items()}
    state = State.of(both, len(objective.terms), objective.langevin)
    make_step(both, objective, eager=eager, autocast=None)(
        state, batch, noise, row(objective, time=0.0, dtype=torch.float64)
    )
    return state, noise, batch


def drawn(both: StudentAndSampler, batch: Batch, objective: Objective) -> dict[str, Tensor]:
    return NoiseSource(both, batch.images, generator(1), objective.noise_specs).draw()


@BOTH_WAYS
def test_the_students_gradient_comes_from_the_current_sample_on_noisy_images(eager: bool):
    """Adam's first moment after one step is a tenth of the gradient, which is computed here by hand."""
    state, noise, batch = stepped(networks(), eager, split(8).labels)
    before = networks()
    noisy = batch.images + INPUT_NOISE * noise["inputs.noise"]
    target = F.softmax(before.sampler(noisy), dim=1).detach()
    loss = -(target * F.log_softmax(before.student(noisy), dim=1)).sum(dim=1).mean()
    penalty = STUDENT_PRIOR / (2 * EXAMPLES) * sum(value.square().sum() for value in before.student.parameters())
    names, values = zip(*before.student.named_parameters(), strict=True)
    assert state.first.keys() == {f"student.{name}" for name in names}
    for name, gradient in zip(names, torch.autograd.grad(loss + penalty, values), strict=True):
        torch.testing.assert_close(state.first[f"student.{name}"], 0.1 * gradient, rtol=1e-5, atol=1e-8)


@BOTH_WAYS
def test_the_student_gives_the_sampler_no_gradient(eager: bool):
    """The sampler moves as it would beside another student, and as the labels and clean images say."""
    state, noise, batch = stepped(networks(), eager, split(8).labels)
    another = networks()
    another.student = perceptron(seed=9).double()
    beside_another, _, _ = stepped(another, eager, split(8).labels)
    before = networks().sampler
    loss = F.cross_entropy(before(batch.images), batch.labels)
    names, values = zip(*before.named_parameters(), strict=True)
    for name, value, gradient in zip(names, values, torch.autograd.grad(loss, values), strict=True):
        sampled = state.parameters[f"sampler.{name}"]
        assert torch.equal(sampled, beside_another.parameters[f"sampler.{name}"])
        drift = ETA / 2 * (EXAMPLES * gradient + 2.0 * value.detach())
        expected = value.detach() - drift + ETA**0.5 * noise[f"langevin/sampler.{name}"]
        torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-7)


def test_the_student_never_sees_the_labels():
    one, _, _ = stepped(networks(), True, split(8).labels)
    two, _, _ = stepped(networks(), True, (split(8).labels + 1) % 4)
    for name, value in one.parameters.items():
        assert torch.equal(value, two.parameters[name]) == name.startswith("student.")


def test_soft_cross_entropy_is_the_divergence_and_the_entropy_of_the_target():
    logits, targets = normal(6, 4, seed=1, dtype=torch.float64), normal(6, 4, seed=2, dtype=torch.float64)
    target = F.softmax(targets, dim=1)
    divergence = F.kl_div(F.log_softmax(logits, dim=1), target, reduction="batchmean")
    entropy = torch.distributions.Categorical(target).entropy().mean()
    torch.testing.assert_close(soft_cross_entropy(logits, targets), divergence + entropy)


def test_the_noise_on_images_is_normal_and_absent_at_test_time():
    layer, images = NoisyInputs(0.3), torch.zeros(1000, 1, 6, 6)
    assert layer(images) is images
    noise = layer.new_noise(images, images)
    layer.draw(noise, generator(3))
    moved = torch.func.functional_call(layer, {"noise": noise}, (images,))
    assert moved.mean().item() == pytest.approx(0.0, abs=4 * 0.3 / 36000**0.5)
    assert moved.std().item() == pytest.approx(0.3, rel=4 / 72000**0.5)


def fitted(folder: Path, how_executed: Backend | None = None) -> FitResult:
    folder.mkdir()
    trainer = TrainerSettings(epochs=3, batch_size=4, lr=1e-2, hold=0.5, patience=None, checkpoint_seconds=1e9)
    spec = FitSpec("miniature", trainer, 0, RunFolder(folder))
    inputs = TrainingInputs(dataset(split(13)), perceptron(hidden=7, seed=2))
    procedure = BayesianDarkKnowledge(input_noise=INPUT_NOISE)
    return procedure.run(perceptron(seed=1), method("bdk", eta=ETA), inputs, spec, how_executed or backend())


def test_what_comes_out_are_the_student_and_the_last_sample(tmp_path: Path):
    outcome, initial = fitted(tmp_path / "run"), perceptron(hidden=7, seed=2)
    assert type(outcome.network) is nn.Sequential
    assert [name for name, _ in outcome.network.named_children()] == ["flatten", "fc1", "fc1_relu", "fc2"]
    assert outcome.network.fc1.out_features == 5
    assert outcome.teacher is not None
    assert not torch.equal(outcome.teacher.get_parameter("fc1.weight"), initial.fc1.weight)
    assert {"cross_entropy", "distillation", "prior", "student_prior", "lr", "eta"} <= outcome.progress.history[
        0
    ].keys()


def test_the_part_alone_is_refused():
    with pytest.raises(ValueError, match=r"needs method\.procedure=dark-knowledge"):
        method("bdk").prepare(perceptron())


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler (g++ or clang++)")
def test_compiled_is_eager(tmp_path: Path):
    eager = fitted(tmp_path / "eager")
    compiled = fitted(tmp_path / "compiled", replace(backend(), compile=True))
    for name, value in eager.network.state_dict().items():
        torch.testing.assert_close(value, compiled.network.state_dict()[name], rtol=0, atol=1e-4)
