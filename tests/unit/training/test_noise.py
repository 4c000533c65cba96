"""Random numbers outside of the step: the noise source, and dropout, which is made of it."""

from math import sqrt

import pytest
import torch
from helpers.miniature import convolutional, generator, method, normal, perceptron
from torch import nn
from torch.func import functional_call

from kdx.models.layers import NoisyDropout, NoisyLayer
from kdx.training.noise import NoiseSource


def perceptron_source(seed: int = 0) -> tuple[nn.Module, NoiseSource]:
    student = method("svd").prepare(perceptron())
    return student, NoiseSource(student, normal(8, 1, 6, 6, seed=1), generator(seed))


def copied(noise):
    return {name: value.clone() for name, value in noise.items()}


def test_shapes_are_those_of_the_outputs_of_variational_layers():
    student = method("svd").prepare(convolutional())
    source = NoiseSource(student, normal(8, 2, 6, 6, seed=1), generator(0))
    shapes = {name: tuple(value.shape) for name, value in source.draw().items()}
    assert shapes == {"conv1.noise": (8, 4, 6, 6), "conv2.noise": (8, 3, 2, 2), "fc1.noise": (8, 4)}


def test_shapes_are_those_of_the_inputs_of_dropout():
    student = method("dropout", input_dropout=0.2).prepare(perceptron(hidden=5))
    source = NoiseSource(student, normal(8, 1, 6, 6, seed=1), generator(0))
    shapes = {name: tuple(value.shape) for name, value in source.draw().items()}
    assert shapes == {"input_dropout.noise": (8, 1, 6, 6), "fc1_relu.1.noise": (8, 5)}


def test_a_plain_network_needs_no_noise():
    assert NoiseSource(perceptron(), normal(8, 1, 6, 6, seed=1), generator(0)).draw() == {}


def test_every_draw_is_fresh_and_in_the_same_memory():
    _, source = perceptron_source()
    first = source.draw()
    kept = copied(first)
    second = source.draw()
    for name, value in second.items():
        assert value is first[name]
        assert not (value == kept[name]).any()
    assert not torch.equal(kept["fc1.noise"][:, :4], kept["fc2.noise"]), "layers have noise of their own"


def test_noise_is_standard_normal():
    student = method("svd").prepare(nn.Sequential(nn.Linear(1, 100)))
    noise = NoiseSource(student, torch.zeros(1000, 1), generator(0)).draw()["0.noise"]
    # Five standard errors of the mean of 100,000 numbers; x, x^2 and x^4 have the variances 1, 2 and 96.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs(noise.pow(power).mean().item() - moment) < 5 * sqrt(variance / 1e5)


def test_the_generator_alone_decides():
    _, one = perceptron_source(seed=3)
    torch.manual_seed(5)
    _, two = perceptron_source(seed=3)
    _, other = perceptron_source(seed=4)
    first, second, third = one.draw(), two.draw(), other.draw()
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert not torch.equal(value, third[name])


def test_seeking_repeats_exactly():
    _, source = perceptron_source()
    source.draw()
    position = source.position()
    ahead = [copied(source.draw()) for _ in range(3)]
    source.seek(position)
    again = [copied(source.draw()) for _ in range(3)]
    _, elsewhere = perceptron_source(seed=9)
    elsewhere.seek(position)
    for one, two in zip(ahead, again, strict=True):
        there = elsewhere.draw()
        assert all(torch.equal(value, two[name]) and torch.equal(value, there[name]) for name, value in one.items())


def test_learning_the_shapes_leaves_the_network_alone():
    student = method("svd").prepare(perceptron())
    before = copied(student.state_dict())
    NoiseSource(student, normal(8, 1, 6, 6, seed=1), generator(0)).draw()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(layer.noise is None for layer in student.modules() if isinstance(layer, NoisyLayer))
    assert not any(module._forward_hooks for module in student.modules())


def test_noise_is_no_part_of_the_state():
    student, source = perceptron_source()
    functional_call(student, source.draw(), (normal(8, 1, 6, 6, seed=1),))
    assert not [name for name in student.state_dict() if "noise" in name]
    assert all(layer.noise is None for layer in student.modules() if isinstance(layer, NoisyLayer))


def test_a_layer_that_does_not_say_its_noise_is_told_so():
    with pytest.raises(TypeError, match="NoisyLayer does not say"):
        NoisyLayer().new_noise(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("rate", [0.4, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate: float):
    layer, count = NoisyDropout(rate), 100_000
    inputs = torch.full((count // 10, 10), 3.0)
    noise = layer.new_noise(inputs, inputs)
    layer.draw(noise, generator(0))
    output = functional_call(layer, {"noise": noise}, (inputs,))
    dropped = output == 0
    # Five standard errors of a share of `count` numbers, and of the share of each of the ten places of a row.
    assert abs(dropped.float().mean().item() - rate) < 5 * sqrt(rate * (1 - rate) / count)
    assert ((dropped.float().mean(dim=0) - rate).abs() < 5 * sqrt(rate * (1 - rate) / (count // 10))).all()
    # Sixteen bits know the rate to one in 2^17.
    torch.testing.assert_close(output[~dropped], torch.full_like(output[~dropped], 3 / (1 - rate)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.75, 0.999])
def test_dropout_keeps_the_mean_exactly(rate: float):
    """Over every value that sixteen bits can have."""
    layer = NoisyDropout(rate)
    inputs = torch.ones(2**16, dtype=torch.float64)
    noise = layer.new_noise(inputs, inputs)
    layer.compare(torch.arange(-(2**15), 2**15).to(torch.int16), noise)
    output = functional_call(layer, {"noise": noise}, (inputs,))
    assert output.mean().item() == pytest.approx(1.0, abs=1e-12)
    assert (output == 0).double().mean().item() == pytest.approx(rate, abs=2**-17)


def test_dropout_is_drawn_for_inputs_of_any_size():
    layer = NoisyDropout(0.5)
    for size in range(1, 10):
        inputs = torch.ones(64, size)
        noise = layer.new_noise(inputs, inputs)
        layer.draw(noise, generator(0))
        assert functional_call(layer, {"noise": noise}, (inputs,)).unique().tolist() == [0.0, 2.0]


def test_dropout_masks_every_example_by_itself():
    layer = NoisyDropout(0.5)
    inputs = torch.ones(16, 50)
    noise = layer.new_noise(inputs, inputs)
    layer.draw(noise, generator(0))
    assert len({tuple(row) for row in functional_call(layer, {"noise": noise}, (inputs,)).tolist()}) == 16


def test_dropout_does_nothing_in_evaluation():
    plain, images = perceptron(), normal(8, 1, 6, 6, seed=1)
    expected = plain(images)
    student = method("dropout", input_dropout=0.2).prepare(plain)
    assert torch.equal(student(images), expected)
    assert torch.equal(method("dropout").finalize(student)(images), expected)


def test_dropout_lies_behind_hidden_relus_only():
    student = method("dropout", dropout=0.4, input_dropout=0.0).prepare(perceptron())
    assert [name for name, layer in student.named_modules() if isinstance(layer, NoisyDropout)] == ["fc1_relu.1"]
    assert student.fc1_relu[1].rate == 0.4


def test_dropout_without_a_place_is_an_error():
    with pytest.raises(ValueError, match=r"no nn\.ReLU"):
        method("dropout").prepare(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="plain sequence"):
        method("dropout", dropout=0.0, input_dropout=0.1).prepare(nn.ModuleDict({"a": nn.ReLU()}))


def test_rates_of_zero_add_no_layers():
    student = method("dropout", dropout=0.0, input_dropout=0.0).prepare(perceptron())
    assert not [layer for layer in student.modules() if isinstance(layer, NoisyDropout)]
