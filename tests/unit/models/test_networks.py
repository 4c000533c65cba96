"""The papers' networks, from their YAML files, against the papers' counts, torchvision and Keras."""

import pytest
import torch
import torchvision
from helpers.networks import SETTINGS, keras_count, parameters, settings, small
from torch import nn

from kdx.config.compose import compose_config
from kdx.config.networks import NetworkSettings
from kdx.models import build_model
from kdx.models.blocks import Residual

COLOUR, GREY = (3, 32, 32), (1, 28, 28)


def unweighted(network: NetworkSettings, image_shape: tuple[int, int, int] = COLOUR) -> nn.Sequential:
    """The network without numbers in it, so that its size costs nothing."""
    with torch.device("meta"):
        return build_model(network, image_shape, 10, seed=0)


def resized(name: str, **fields: object) -> NetworkSettings:
    return settings(name).model_copy(update=fields)


def shapes(values) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in values]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vgg19", 139_611_210),
        ("alexnet-cifar", 16_327_050),
        ("nin", 966_986),
        ("resnet152", 58_164_298),
        ("densenet121", 6_964_106),
    ],
)
def test_parameters(name: str, count: int):
    assert parameters(unweighted(settings(name))) == count


@pytest.mark.parametrize(
    ("name", "hidden", "count"),
    [
        ("resnet56-v2", None, 1_673_738),
        ("kddp-sn-50", [50], 85_104),
        ("kddp-sn-100", [100], 114_454),
        ("kddp-sn-500", [500], 349_254),
        ("kddp-sn-50", [45], 82_169),
        ("kddp-sn-100", [83], 104_475),
        ("kddp-sn-500", [264], 210_722),
    ],
)
def test_parameters_as_keras_counts(name: str, hidden: list[int] | None, count: int):
    network = unweighted(resized(name, hidden=hidden) if hidden else settings(name))
    assert keras_count(network) == count
    # Each hidden unit of SN_n is 576 weights, a bias, and 10 weights of the next layer.
    if hidden:
        smaller = unweighted(resized(name, hidden=[hidden[0] - 1]))
        assert keras_count(network) - keras_count(smaller) == 587


def test_densenet_with_halved_bottlenecks():
    """Compression ratios for halved bottlenecks, computed independently; no refinement of kdx halves them."""
    whole = parameters(unweighted(settings("densenet121")))
    smaller = [parameters(unweighted(resized("densenet121", bottleneck=bottleneck))) for bottleneck in (2, 1)]
    assert [f"{whole / count:.2f}" for count in smaller] == ["1.80", "3.00"]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("vgg19", torchvision.models.vgg19),
        ("resnet152", torchvision.models.resnet152),
        ("densenet121", torchvision.models.densenet121),
    ],
)
def test_every_weight_has_the_shape_of_torchvisions(name: str, theirs):
    with torch.device("meta"):
        expected = theirs(num_classes=10).state_dict()
    assert shapes(unweighted(settings(name)).state_dict().values()) == shapes(expected.values())


def small_torchvision(name: str) -> tuple[nn.Module, NetworkSettings]:
    if name == "densenet":
        theirs = torchvision.models.DenseNet(4, (2, 1, 2, 1), num_init_features=8, bn_size=2, num_classes=10)
        sizes = {"stem": 8, "growth": 4, "bottleneck": 2, "blocks": [2, 1, 2, 1]}
        return theirs, resized("densenet121", **sizes)
    theirs = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 2, 1, 1], num_classes=10)
    return theirs, resized("resnet152", blocks=[1, 2, 1, 1])


@pytest.mark.parametrize("name", ["resnet", "densenet"])
def test_the_same_weights_give_torchvisions_logits(name: str):
    theirs, sizes = small_torchvision(name)
    mine = build_model(sizes, COLOUR, 10, seed=0)
    weights = dict(zip(mine.state_dict(), theirs.state_dict().values(), strict=True))
    mine.load_state_dict(weights)
    images = torch.randn(4, *COLOUR, generator=torch.Generator().manual_seed(0))
    expected = theirs(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(mine(images), expected, rtol=1e-3, atol=1e-4)


def test_vgg_has_torchvisions_layers_in_its_order():
    with torch.device("meta"):
        theirs = torchvision.models.vgg19(num_classes=10)
    expected = [*theirs.features, theirs.avgpool, nn.Flatten(), *theirs.classifier]
    mine = unweighted(settings("vgg19"))
    assert [type(layer) for layer in mine] == [type(layer) for layer in expected]
    for one, two in zip(mine, expected, strict=True):
        for field in ("kernel_size", "stride", "padding", "output_size", "p"):
            first, second = (getattr(layer, field, None) for layer in (one, two))
            assert first == second or (first, first) == second, (one, two)


@pytest.mark.parametrize("name", ["vgg19", "nin", "alexnet-cifar", "resnet152", "densenet121", "resnet56-v2"])
@pytest.mark.parametrize("image_shape", [COLOUR, GREY])
def test_the_teachers_of_the_papers_take_both_sizes_of_images(name: str, image_shape: tuple[int, int, int]):
    network = unweighted(compose_config([f"teacher={name}"]).teacher, image_shape)
    assert network(torch.empty(2, *image_shape, device="meta")).shape == (2, 10)


def test_network_in_network():
    network = unweighted(settings("nin"))
    filters = [(layer.out_channels, layer.kernel_size[0]) for layer in network if isinstance(layer, nn.Conv2d)]
    assert filters == [(192, 5), (160, 1), (96, 1), (192, 5), (192, 1), (192, 1), (192, 3), (192, 1), (10, 1)]
    names = [name for name, layer in network.named_children() if not isinstance(layer, nn.Conv2d | nn.ReLU)]
    assert names == ["pool1", "dropout1", "pool2", "dropout2", "average", "flatten"]
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.5, 0.5]
    assert isinstance(network.get_submodule("pool2"), nn.AvgPool2d)
    # Ceil pooling: 32, 16, 8.
    assert network[: list(dict(network.named_children())).index("dropout2")](
        torch.empty(1, 3, 32, 32, device="meta")
    ).shape == (1, 192, 8, 8)


def test_keras_resnet_narrows_halves_and_projects_as_the_example_does():
    network = unweighted(settings("resnet56-v2"))
    blocks = [block for block in network.modules() if isinstance(block, Residual)]
    assert len(blocks) == 18
    assert [number for number, block in enumerate(blocks) if isinstance(block.shortcut, nn.Conv2d)] == [0, 6, 12]
    assert next(iter(blocks[0].branch)).kernel_size == (1, 1)
    assert all(isinstance(next(iter(block.branch)), nn.BatchNorm2d) for block in blocks[1:])
    widths = [blocks[number].branch.get_parameter("conv2.weight").shape[0] for number in (0, 6, 12)]
    assert widths == [16, 64, 128]
    images, sides = torch.empty(1, *COLOUR, device="meta"), []
    for name, layer in network.named_children():
        images = layer(images)
        if name.startswith("stage"):
            sides.append(images.shape[2])
    assert sides == [32, 16, 8]


def test_padding_centres_small_images():
    padding = small("vgg")[0]
    padded = padding(torch.ones(1, 1, 12, 12))
    assert padded.shape == (1, 1, 14, 14)
    assert padded[..., 1:-1, 1:-1].all()
    assert padded.sum() == 144


@pytest.mark.parametrize("family", SETTINGS)
def test_each_layer_works_once_and_on_a_tensor_of_its_own(family: str):
    """Noise is drawn for each layer, so a layer that is used twice would have too little; in-place work would hide."""
    network, calls = small(family), []
    leaves = [layer for layer in network.modules() if not list(layer.children())]
    for layer in leaves:
        layer.register_forward_hook(lambda layer, _inputs, _outputs: calls.append(layer))
    network(torch.randn(3, 1, 12, 12))
    assert len(calls) == len(set(calls)) == len(leaves)
    assert not any(getattr(layer, "inplace", False) for layer in leaves)


@pytest.mark.parametrize("family", ["vgg", "nin", "resnet", "densenet", "keras-resnet"])
def test_the_signal_reaches_the_logits_of_a_deep_network(family: str):
    """He's weights keep the size of the signal; torch's own would shrink it by 6 in each layer."""
    images = torch.randn(64, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    assert 0.05 < small(family).eval()(images).std() < 20
