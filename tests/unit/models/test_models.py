"""The architectures, from their YAML files: the papers' sizes, shapes, initial weights."""

from functools import cache

import pytest
import torch
from torch import nn

from kdx.config.compose import compose_config
from kdx.config.networks import NetworkSettings, PlainSettings
from kdx.errors import UserError
from kdx.models import build_model

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def built(words: str, image_shape: tuple[int, int, int] = GREY, seed: int = 0) -> nn.Sequential:
    return build_model(settings(words), image_shape, 10, seed)


@cache
def settings(words: str) -> NetworkSettings:
    return getattr(compose_config([words]), words.partition("=")[0])


def count(network: nn.Module, weights_only: bool = False) -> int:
    return sum(value.numel() for value in network.parameters() if value.dim() > 1 or not weights_only)


@pytest.mark.parametrize(
    ("words", "image_shape", "parameters", "weights"),
    [
        ("student=mlp-1200-1200", GREY, 2_395_210, 2_392_800),
        ("teacher=mlp-1200-1200", GREY, 2_395_210, 2_392_800),
        ("student=mlp-500-50", GREY, 418_060, 417_500),
        ("student=lenet-300-100", GREY, 266_610, 266_200),
        ("student=lenet5-caffe", COLOUR, 657_080, 656_500),
        ("student=lenet5-caffe", GREY, 431_080, 430_500),
        ("teacher=lenet5-caffe", GREY, 431_080, 430_500),
        ("student=mlp-800-800", GREY, 1_276_810, 1_275_200),
    ],
)
def test_published_sizes(words: str, image_shape: tuple[int, int, int], parameters: int, weights: int):
    network = built(words, image_shape)
    assert (count(network), count(network, weights_only=True)) == (parameters, weights)
    assert network(torch.zeros(2, *image_shape)).shape == (2, 10)


def test_the_order_of_the_layers():
    kinds = [type(layer).__name__ for layer in built("student=lenet-300-100")]
    assert kinds == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    kinds = [type(layer).__name__ for layer in built("student=lenet5-caffe")]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Flatten", "Linear", "ReLU", "Linear"]
    filters = [tuple(layer.weight.shape) for layer in built("student=lenet5-caffe") if isinstance(layer, nn.Conv2d)]
    assert filters == [(20, 1, 5, 5), (50, 20, 5, 5)]


def test_the_seed_alone_decides_the_initial_weights():
    first = built("student=lenet-300-100", seed=1)
    position = torch.random.get_rng_state()
    torch.manual_seed(123)
    again, other = built("student=lenet-300-100", seed=1), built("student=lenet-300-100", seed=2)
    torch.random.set_rng_state(position)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first.parameters(), other.parameters(), strict=True))


def test_building_leaves_the_global_generator_where_it_was():
    before = torch.random.get_rng_state()
    built("student=lenet-300-100")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("side", [5, 15])
def test_images_that_are_too_small_are_the_users_mistake(side: int):
    with pytest.raises(UserError, match=rf"lenet5-caffe: images of {side}x{side} pixels are too small"):
        built("student=lenet5-caffe", (1, side, side))


def test_the_smallest_images_that_fit():
    assert built("student=lenet5-caffe", (1, 16, 16))(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_a_perceptron_without_hidden_layers_is_a_linear_classifier():
    linear = PlainSettings(name="linear", family="mlp", hidden=[], channels=[])
    network = build_model(linear, (1, 2, 2), 3, seed=0)
    assert [tuple(value.shape) for value in network.parameters()] == [(3, 4), (3,)]
