"""Refinement against compression ratios that were computed independently, and what it refuses."""

import pytest
import torch
from helpers.networks import SETTINGS

from kdx.config.compose import compose_config
from kdx.config.networks import NetworkSettings, Operator
from kdx.errors import UserError
from kdx.models import build_model
from kdx.models.refine import refined


def settings(name: str, *words: str) -> NetworkSettings:
    network = compose_config([f"student={name}", *words]).student
    assert network.family != "refined"
    return network


def parameters(network: NetworkSettings, image_shape: tuple[int, int, int] = (3, 32, 32)) -> int:
    with torch.device("meta"):
        return sum(value.numel() for value in build_model(network, image_shape, 10, seed=0).parameters())


@pytest.mark.parametrize(
    ("name", "operator", "printed"),
    [
        ("vgg19", "filters", "3.998 15.98 63.82 254.45"),
        ("densenet121", "filters", "3.94 15.3 58 209"),
        ("densenet121", "growth", "3.81 13.8 44.5 117"),
        ("densenet121", "blocks", "3.01 8.34 19.7 35.9"),
        ("densenet121", "blocks_ceil", "3.01 7.68 16.8 28.3"),
        ("resnet152", "filters", "3.99 15.9 62.6 245"),
        ("resnet152", "planes", "3.98 15.8 61.9 235"),
        ("resnet152", "blocks", "2.09 3.37 5.11 6.35"),
        ("resnet152", "blocks_ceil", "1.80 3.37 4.65 5.66"),
    ],
)
def test_how_many_times_fewer_parameters(name: str, operator: Operator, printed: str):
    whole = settings(name)
    count = parameters(whole)
    for times, text in enumerate(printed.split(), start=1):
        ratio = count / parameters(refined(whole, operator, times))
        # The ratios are rounded to so many digits.
        assert f"{ratio:.{len(text.partition('.')[2])}f}" == text, times


@pytest.mark.parametrize(
    ("network", "operator", "expected"),
    [
        (settings("lenet5-caffe"), "filters", {"channels": [5, 12], "hidden": [125]}),
        (settings("lenet-300-100"), "filters", {"hidden": [75, 25]}),
        (settings("kddp-sn-50"), "filters", {"channels": 16, "hidden": [12]}),
        (settings("resnet56-v2"), "filters", {"stem": 4, "channels": [16, 32, 64]}),
        (settings("resnet56-v2"), "planes", {"channels": [16, 32, 64]}),
        (settings("resnet56-v2"), "blocks", {"blocks": [1, 1, 1]}),
        (settings("resnet56-v2"), "blocks_ceil", {"blocks": [2, 2, 2]}),
        (settings("nin"), "filters", {"width": 0.25}),
        (settings("densenet121"), "growth", {"growth": 8}),
    ],
)
def test_what_two_refinements_halve_and_what_they_leave(network: NetworkSettings, operator: Operator, expected: dict):
    names = {"name": f"{network.name}-{operator}-2"}
    assert refined(network, operator, 2).model_dump() == network.model_dump() | expected | names


@pytest.mark.parametrize("family", SETTINGS)
def test_the_refined_network_of_every_family_is_a_network(family: str):
    network = SETTINGS[family]
    smaller = refined(network, "filters", 1)
    assert parameters(smaller, (1, 12, 12)) < parameters(network, (1, 12, 12))
    assert refined(network, "filters", 0) == network


@pytest.mark.parametrize(
    ("network", "operator", "allowed"),
    [
        (settings("lenet-300-100"), "blocks", "filters"),
        (settings("lenet5-caffe"), "blocks_ceil", "filters"),
        (settings("vgg19"), "blocks", "filters"),
        (settings("vgg19"), "growth", "filters"),
        (settings("resnet152"), "growth", "filters, planes, blocks, blocks_ceil"),
        (settings("densenet121"), "planes", "filters, growth, blocks, blocks_ceil"),
    ],
)
def test_an_operator_that_means_nothing_for_the_network(network: NetworkSettings, operator: Operator, allowed: str):
    with pytest.raises(UserError) as caught:
        refined(network, operator, 1)
    assert str(caught.value) == (
        f"method.refine: '{operator}' is not allowed with {network.name}, of family {network.family};"
        f" allowed: {allowed}"
    )


@pytest.mark.parametrize(
    ("network", "operator", "possible", "least"),
    [
        (settings("lenet5-caffe"), "filters", 4, "channels=20"),
        (settings("lenet-300-100", "student.hidden=[16]"), "filters", 4, "hidden=16"),
        (settings("lenet-300-100", "student.hidden=[15]"), "filters", 3, "hidden=15"),
        (settings("vgg19"), "filters", 6, "layers=64"),
        (settings("vgg19", "student.width=0.26"), "filters", 4, "layers=16"),
        (settings("densenet121"), "growth", 5, "growth=32"),
    ],
)
def test_a_width_never_reaches_zero(network: NetworkSettings, operator: Operator, possible: int, least: str):
    assert parameters(refined(network, operator, possible)) > 0
    with pytest.raises(UserError) as caught:
        refined(network, operator, possible + 1)
    assert str(caught.value).startswith(f"method.generations: {possible + 1} is not allowed with method.refine=")
    assert str(caught.value).endswith(f"where {least} can be halved {possible} times; allowed: 1 to {possible}")


def test_a_width_of_one_cannot_be_halved():
    with pytest.raises(UserError, match=r"hidden=1 can be halved 0 times; allowed: none$"):
        refined(settings("lenet-300-100", "student.hidden=[1]"), "filters", 1)


def test_blocks_stop_at_one():
    assert refined(settings("resnet152"), "blocks", 10).model_dump()["blocks"] == [1, 1, 1, 1]
