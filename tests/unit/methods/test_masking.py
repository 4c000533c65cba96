"""Masked layers and L2: what they compute, and what training does to removed and surviving weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.miniature import (
    CLASSES,
    SIDE,
    convolutional,
    engine,
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

from kdx.config import TrainerSettings
from kdx.device import has_compiler
from kdx.methods import Method
from kdx.methods.dropout import Dropout, NoisyDropout
from kdx.methods.l2 import L2
from kdx.methods.labels import Labels
from kdx.methods.masked import Masked, MaskedConv2d, MaskedLinear
from kdx.trainer import Training, train

MASKED = Method("masked", (Masked(rescale_dropout=True),))


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
    parts = (Labels(), L2(l2=1e-2), Dropout(dropout=0.3, input_dropout=0), Masked(rescale_dropout=True))
    how, examples = Method("ip", parts), split(12, channels=1 if build is perceptron else 2)
    student = how.prepare(sparse(build()))
    training = Training(
        title="miniature",
        identity="miniature",
        examples=examples,
        teacher_logits=None,
        trainer=TrainerSettings(epochs=3, batch_size=4, lr=2e-3, hold=0.5, patience=None, checkpoint_seconds=1e9),
        seed=0,
        checkpoint=folder / "checkpoint",
    )
    objective = how.objective(student, None, len(examples))
    train(student, objective, training, replace(engine(), compile=compiled), no_figures)
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
        how = Method("x", (Dropout(dropout=0.4, input_dropout=0.2), Masked(rescale_dropout=rescale)))
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
