"""The number of multiplications: by hand, against the papers' numbers and against torch's own counter."""

from functools import cache

import pytest
import torch
from helpers.networks import IMAGE, SETTINGS, small
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdx.config.compose import compose_config
from kdx.measure.multiplications import multiplications, nonzero_multiplications
from kdx.models import build_model

COLOUR = (3, 32, 32)


@cache
def built(name: str) -> nn.Sequential:
    with torch.device("meta"):
        return build_model(compose_config([f"student={name}"]).student, COLOUR, 10, seed=0)


def test_by_hand():
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)
    )
    with torch.no_grad():
        network[0].weight[0] = 0.0
        network[3].weight[:, :40] = 0.0
    # 4 filters of 1x3x3 at 3x4 positions, and a matrix; one filter and 40 of 48 columns are zero.
    assert multiplications(network, (2, 6, 8)) == 4 * 9 * 12 + 48 * 5
    assert nonzero_multiplications(network, (2, 6, 8)) == 3 * 9 * 12 + 8 * 5
    assert network.training
    assert not network[0]._forward_hooks


def test_a_matrix_is_used_at_every_place_of_a_sequence():
    """Tokens (batch, L, C), as transformers and mixers have them: 6 places of 4 numbers each."""
    network = nn.Sequential(nn.Unflatten(2, (2, 2)), nn.Flatten(2, 4), nn.Linear(4, 3), nn.Flatten(), nn.Linear(18, 5))
    assert network[1](network[0](torch.empty(1, 6, 4, 1))).shape == (1, 6, 4)
    with torch.no_grad():
        network[2].weight[0] = 0.0
    assert multiplications(network, (6, 4, 1)) == 6 * 4 * 3 + 18 * 5
    assert nonzero_multiplications(network, (6, 4, 1)) == 6 * 4 * 2 + 18 * 5


def test_a_layer_that_is_used_twice_counts_twice():
    layer = nn.Linear(3, 3)
    assert multiplications(nn.Sequential(nn.Flatten(), layer, layer), (3, 1, 1)) == 18


# Millions, as the Noisy Teachers paper prints them; nin, printed as 223, has more digits.
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("nin", "222.49"),
        ("alexnet-cifar", "375"),
        ("noisy-cifar", "65.7"),
        ("noisy-svhn", "19.8"),
        ("noisy-student1", "61.155"),
        ("noisy-student2", "11.25"),
        # The paper's sums are 6.745 (and 11.251 for Student2): its printed layers add up to 6.744 only.
        ("noisy-student3", "6.744"),
    ],
)
def test_of_the_noisy_papers_networks(name: str, printed: str):
    assert f"{multiplications(built(name), COLOUR) / 1e6:.{len(printed.partition('.')[2])}f}" == printed


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("noisy-student1", [4.92, 45.88, 8.26, 2.11]),
        ("noisy-student2", [2.46, 6.55, 1.18, 1.06]),
        ("noisy-student3", [1.23, 3.28, 1.18, 1.06]),
    ],
)
def test_of_the_students_layers(name: str, printed: list[float]):
    """Each convolution, then all fully connected layers."""
    network, images, found = built(name), torch.empty(1, 3, 32, 32, device="meta"), []
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            found.append(multiplications(layer, images.shape[1:]))
        images = layer(images)
        if isinstance(layer, nn.Flatten):
            break
    found.append(multiplications(network, COLOUR) - sum(found))
    assert [round(count / 1e6, 2) for count in found] == printed


@pytest.mark.parametrize("name", ["resnet56-v2", "densenet121", "resnet152", "kddp-sn-100", "vgg19"])
def test_of_large_networks_are_those_of_torchs_counter(name: str):
    network = built(name).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 32, 32, device="meta"))
    # It counts a multiplication and an addition each.
    assert multiplications(network, COLOUR) == counter.get_total_flops() / 2


@pytest.mark.parametrize("family", SETTINGS)
def test_nothing_of_the_network_changes(family: str):
    network = small(family)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert multiplications(network, IMAGE) == nonzero_multiplications(network, IMAGE) > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
