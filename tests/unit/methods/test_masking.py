"""Masked layers and L2: what they compute, what training does to removed and surviving weights, and which those are."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path

import pytest
import torch
from helpers.masks import kept, no_bit_set
from helpers.miniature import (
    CLASSES,
    SIDE,
    backend,
    convolutional,
    generator,
    named,
    no_figures,
    normal,
    perceptron,
    split,
    step_of,
)
from helpers.networks import IMAGE, SETTINGS, small
from torch import Tensor, nn

from kdx.config.schema import TrainerSettings
from kdx.device.backend import has_compiler
from kdx.methods.distillation import CrossEntropy
from kdx.methods.dropout import Dropout
from kdx.methods.masking import (
    MaskedConv2d,
    MaskedLinear,
    Masking,
    cubic_sparsity,
    masks_by_fraction,
    masks_by_layer,
    masks_by_quality,
    prune,
)
from kdx.methods.method import Method
from kdx.methods.weight_decay import L2
from kdx.models.layers import NoisyDropout
from kdx.models.weights import weight_matrices
from kdx.training.learner import TrainSpec
from kdx.training.trainer import train

MASKED = Method("masked", (Masking(rescale_dropout=True),))


def sparse(network: nn.Sequential, fraction: float = 0.6, seed: int = 3) -> nn.Sequential:
    """The network with about this fraction of every weight matrix set to zero."""
    numbers = generator(seed)
    with torch.no_grad():
        for weight in matrices(network).values():
            weight[torch.rand(weight.shape, generator=numbers) < fraction] = 0.0
    return network


def matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in network.named_parameters() if value.dim() > 1}


def is_zero(values: Tensor) -> bool:
    """Whether every bit is zero: a negative zero is not."""
    return not values.view(torch.int32).any()


@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_removed_weights_take_no_part_whatever_they_are(build: Callable[[], nn.Sequential]):
    images = normal(3, 1 if build is perceptron else 2, SIDE, SIDE, seed=8)
    plain = sparse(build())
    expected, holes = plain(images), {name: weight == 0 for name, weight in matrices(plain).items()}
    student = MASKED.prepare(sparse(build()))
    assert torch.equal(student(images), expected)
    with torch.no_grad():
        for name, weight in matrices(student).items():
            weight[holes[name]] = -7.0
    assert torch.equal(student(images), expected)
    finished = MASKED.finalize(student)
    assert torch.equal(finished(images), expected)
    assert [type(layer) for layer in finished.modules()] == [type(layer) for layer in plain.modules()]
    for name, weight in matrices(finished).items():
        assert is_zero(weight[holes[name]])
    assert torch.equal(finished.get_parameter("fc1.bias"), plain.get_parameter("fc1.bias"))


def test_other_paddings_and_layers_without_bias_are_kept():
    def build() -> nn.Sequential:
        conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect", bias=False)
        return named({"conv1": conv, "flatten": nn.Flatten(), "fc1": nn.Linear(2 * SIDE**2, 3, bias=False)}, seed=0)

    images = normal(3, 1, SIDE, SIDE, seed=8)
    student = MASKED.prepare(sparse(build()))
    assert [type(layer) for layer in student][::2] == [MaskedConv2d, MaskedLinear]
    assert torch.equal(student(images), sparse(build())(images))
    assert torch.equal(MASKED.finalize(student)(images), sparse(build())(images))


def test_a_layer_without_zeros_is_left_as_it_is():
    plain = perceptron()
    with torch.no_grad():
        plain.fc2.weight[0, 0] = 0.0
    student = MASKED.prepare(plain)
    assert (type(student.fc1), type(student.fc2)) == (nn.Linear, MaskedLinear)
    with pytest.raises(ValueError, match="to mask"):
        MASKED.prepare(named({"flatten": nn.Flatten()}, seed=0))


@pytest.mark.parametrize("family", SETTINGS)
def test_every_family_is_masked_and_plain_again(family: str):
    images, plain = normal(3, *IMAGE, seed=8), sparse(small(family)).eval()
    student = MASKED.prepare(sparse(small(family))).eval()
    assert sum(isinstance(layer, MaskedLinear | MaskedConv2d) for layer in student.modules()) == len(matrices(plain))
    assert torch.equal(student(images), plain(images))
    finished = MASKED.finalize(student)
    small(family, seed=1).load_state_dict(finished.state_dict())
    assert torch.equal(finished(images), plain(images))


def test_a_student_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"no nn\.Linear and no nn\.Conv2d to mask"):
        MASKED.prepare(nn.Sequential(nn.Flatten()))


def trained(folder: Path, build: Callable[[], nn.Sequential], compiled: bool) -> nn.Module:
    """A sparse network after some steps of the real trainer, with weight decay and dropout."""
    parts = (CrossEntropy(), L2(l2=1e-2), Dropout(dropout=0.3, input_dropout=0), Masking(rescale_dropout=True))
    how, examples = Method("ip", parts), split(12, channels=1 if build is perceptron else 2)
    student = how.prepare(sparse(build()))
    training = partial(
        TrainSpec,
        title="miniature",
        identity="miniature",
        examples=examples,
        teacher_logits=None,
        trainer=TrainerSettings(epochs=3, batch_size=4, lr=2e-3, hold=0.5, patience=None, checkpoint_seconds=1e9),
        seed=0,
        checkpoint=folder / "checkpoint",
    )
    objective = how.objective(student, None, len(examples))
    train(training(student, objective, no_figures), replace(backend(), compile=compiled))
    return how.finalize(student)


def assert_only_survivors_moved(network: nn.Module, before: nn.Module) -> None:
    for name, weight in matrices(before).items():
        now = network.get_parameter(name)
        assert is_zero(now[weight == 0]), name
        # Weight decay moves even those that no example needs.
        assert (now != weight)[weight != 0].all(), name


@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_training_moves_the_survivors_only(tmp_path: Path, build: Callable[[], nn.Sequential]):
    assert_only_survivors_moved(trained(tmp_path, build, compiled=False), sparse(build()))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler (g++ or clang++)")
def test_compiled_training_is_eager_training(tmp_path: Path):
    compiled = trained(tmp_path / "compiled", perceptron, compiled=True)
    assert_only_survivors_moved(compiled, sparse(perceptron()))
    eager = trained(tmp_path / "eager", perceptron, compiled=False)
    for name, value in eager.named_parameters():
        torch.testing.assert_close(compiled.get_parameter(name), value, rtol=0, atol=1e-5)


def rates(student: nn.Module) -> list[float]:
    return [layer.rate for layer in student.modules() if isinstance(layer, NoisyDropout)]


def with_dropout(kept1: int, kept2: int) -> nn.Sequential:
    """16-9-4-2, with the architecture's own dropout behind fc2; only the first weights of each layer are left."""
    layers = {
        "fc1": nn.Linear(16, 9),
        "fc1_relu": nn.ReLU(),
        "fc2": nn.Linear(9, 4),
        "fc2_dropout": nn.Dropout(0.5),
        "fc3": nn.Linear(4, 2),
    }
    network = named(layers, seed=0)
    with torch.no_grad():
        for name, kept in (("fc1", kept1), ("fc2", kept2)):
            network.get_parameter(f"{name}.weight").view(-1)[kept:] = 0.0
    return network


def test_the_dropout_behind_a_layer_falls_with_the_root_of_its_survivors():
    def prepared(kept1: int, kept2: int, rescale: bool = True) -> list[float]:
        how = Method("x", (Dropout(dropout=0.4, input_dropout=0.2), Masking(rescale_dropout=rescale)))
        return rates(how.prepare(with_dropout(kept1, kept2)))

    # 36 of 144 weights: half of the rate; 4 of 36: a third. The inputs lie behind no layer.
    assert prepared(36, 4) == pytest.approx([0.2, 0.4 / 2, 0.5 / 3])
    assert prepared(144, 36) == [0.2, 0.4, 0.5]
    assert prepared(36, 4, rescale=False) == [0.2, 0.4, 0.5]


def test_l2_is_half_the_squares_of_weight_matrices():
    network = named(
        {"flatten": nn.Flatten(), "fc1": nn.Linear(SIDE**2, 5), "bn1": nn.BatchNorm1d(5), "fc2": nn.Linear(5, CLASSES)},
        seed=2,
    )
    how = Method("x", (L2(l2=0.3),))
    objective = how.objective(network, None, 4)
    step = step_of(network, objective, split(4), normal(4, CLASSES, seed=1))
    total, (value,) = objective.loss(step)
    expected = sum(w.double().square().sum().item() for w in matrices(network).values()) / 2
    assert value.item() == pytest.approx(expected, rel=1e-6)
    total.backward()
    for name, parameter in network.named_parameters():
        if name in ("fc1.weight", "fc2.weight"):
            torch.testing.assert_close(parameter.grad, 0.3 * parameter.detach())
        else:
            assert parameter.grad is None


def test_the_threshold_is_q_times_the_deviation_of_the_survivors():
    # The deviation of 1, -1, 3, -3 is sqrt(5) = 2.236, with the removed zeros it would be 1.826.
    weights = {"a": torch.tensor([1.0, -1.0, 3.0, -3.0, 0.0, 0.0]), "b": torch.tensor([[0.02, -0.02]])}
    found = masks_by_quality(weights, 1.0)
    assert found["a"].tolist() == [False, False, True, True, False, False]
    # Exactly at the threshold is not below it.
    assert found["b"].tolist() == [[True, True]]
    assert masks_by_quality(weights, 0.45)["a"].tolist() == [False, False, True, True, False, False]
    assert masks_by_quality(weights, 0.44)["a"].tolist() == [True, True, True, True, False, False]


def layers(seed: int = 0) -> dict[str, Tensor]:
    """Three layers of very different scale."""
    shapes = {"a": (40, 30), "b": (8, 5, 3, 3), "c": (10, 8)}
    return {
        name: 10.0**-place * normal(*shape, seed=seed + place) for place, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("keep", [0.133, 0.5, 0.9, 1.0])
def test_one_quality_factor_for_all_layers_keeps_the_fraction(keep: float):
    weights = layers()
    total = sum(weight.numel() for weight in weights.values())
    found, q = masks_by_fraction(weights, keep)
    assert kept(found) == round(keep * total)
    # The same criterion, layer by layer, in float64.
    for name, weight in weights.items():
        threshold = q * weight.double().std(correction=0)
        assert (weight.double().abs()[found[name]] >= threshold * (1 - 1e-6)).all()
        assert (weight.double().abs()[~found[name]] < threshold * (1 + 1e-6)).all()
        assert found[name].shape == weight.shape
    # The factor is the one that bisection finds.
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        enough = kept(masks_by_quality(weights, middle)) >= round(keep * total)
        low, high = (middle, high) if enough else (low, middle)
    assert q == pytest.approx(low, rel=1e-6)


def test_equal_weights_do_not_blur_the_number():
    weights = {"a": torch.tensor([[1.0, -1.0] * 10]), "b": torch.ones(3, 10)}
    assert kept(masks_by_fraction({"a": weights["a"]}, 0.35)[0]) == 7
    found = masks_by_layer(weights, {"a": 0.25, "b": 0.9})
    assert (kept({"a": found["a"]}), kept({"b": found["b"]})) == (15, 3)


def test_a_layer_without_survivors_stays_so():
    weights = {"a": torch.zeros(4, 5), "b": normal(4, 5, seed=1)}
    found, _ = masks_by_fraction(weights, 0.25)
    assert (int(found["a"].sum()), int(found["b"].sum())) == (0, 10)
    assert not masks_by_quality(weights, 0.1)["a"].any()


def test_a_single_survivor_goes_last():
    """Its layer's deviation is zero, which no multiple of it exceeds."""
    weights = {"a": torch.zeros(10, 50), "b": normal(100, 100, seed=1)}
    weights["a"][3, 7] = 0.01
    found, q = masks_by_fraction(weights, 0.01)
    assert found["a"].nonzero().tolist() == [[3, 7]]
    assert int(found["b"].sum()) == 104
    assert torch.equal(found["b"], masks_by_quality(weights, q)["b"])
    assert isfinite(masks_by_fraction(weights, 0.0001)[1])


def test_each_layer_loses_its_smallest_weights():
    weights = {"a": torch.tensor([[0.1, -0.4], [0.3, -0.2]]), "b": torch.tensor([[5.0, -6.0]])}
    found = masks_by_layer(weights, {"a": 0.5, "b": 0.5})
    assert found["a"].tolist() == [[False, True], [True, False]]
    assert found["b"].tolist() == [[False, True]]


@pytest.mark.parametrize(("step", "expected"), [(0, 0.2), (5, 0.2 + 0.7 * 0.875), (10, 0.9), (1, 0.9 - 0.7 * 0.729)])
def test_the_cubic_schedule(step: int, expected: float):
    assert cubic_sparsity(0.2, 0.9, step, 10) == pytest.approx(expected, abs=1e-12)


def test_pruned_weights_are_positive_zeros():
    network = perceptron()
    found, _ = masks_by_fraction(weight_matrices(network), 0.3)
    before = {name: weight.clone() for name, weight in weight_matrices(network).items()}
    prune(network, found)
    for name, weight in weight_matrices(network).items():
        assert no_bit_set(weight[~found[name]])
        assert torch.equal(weight[found[name]], before[name][found[name]])
