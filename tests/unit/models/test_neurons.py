"""Hidden neurons: which layers have them, how active they are, and the network without some."""

import pytest
import torch
from helpers.miniature import CLASSES, SIDE, convolutional, named, normal, perceptron, randomise, split
from helpers.networks import IMAGE, keras_count, settings, small
from torch import nn

from kdx.data.dataset import Split
from kdx.errors import UserError
from kdx.methods.kddp import mean_activations
from kdx.models import build_model
from kdx.models.neurons import Hidden, hidden_layer, without_neurons

SILENT = [1, 4, 5]


def normalised(flattened: bool = False) -> nn.Sequential:
    """36-6-4 with batch norm that is not the identity, and behind the ReLU what changes nothing in eval mode."""
    layers = {
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(SIDE * SIDE, 6, bias=False),
        "bn1": nn.BatchNorm1d(6),
        "fc1_relu": nn.ReLU(),
        "fc1_dropout": nn.Dropout(0.5),
        "again": nn.Flatten() if flattened else nn.Identity(),
        "fc2": nn.Linear(6, CLASSES),
    }
    network = named(layers, seed=3)
    network.bn1.running_mean.copy_(normal(6, seed=1))
    network.bn1.running_var.copy_(normal(6, seed=2).square() + 0.5)
    with torch.no_grad():
        network.bn1.bias[SILENT] = -100.0
    return network.eval()


def biased(network: nn.Sequential, layer: str, silent: list[int]) -> nn.Sequential:
    with torch.no_grad():
        network.get_parameter(f"{layer}.bias")[silent] = -1000.0
    return network.eval()


NETWORKS = {
    "perceptron": lambda: (biased(perceptron(hidden=6), "fc1", SILENT), (1, SIDE, SIDE)),
    "batch norm": lambda: (normalised(), (1, SIDE, SIDE)),
    "batch norm and flatten": lambda: (normalised(flattened=True), (1, SIDE, SIDE)),
    "conv, flatten, fc": lambda: (biased(small("lenet"), "fc1", SILENT), IMAGE),
    "kddp": lambda: (biased(small("kddp"), "fc1", [0, 3]), IMAGE),
    "dropout of its own": lambda: (biased(small("vgg"), "fc1", [0, 6]), IMAGE),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_without_silent_neurons_the_function_is_the_same(case: str):
    network, shape = NETWORKS[case]()
    network.double()
    hidden, images = hidden_layer(network, None), normal(50, *shape, seed=8, dtype=torch.float64)
    labels = torch.zeros(50, dtype=torch.int64)
    means = mean_activations(network, hidden, Split(images, labels))
    kept = means > 0
    assert 0 < int(kept.sum()) < len(kept)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    smaller = without_neurons(network, hidden, kept)
    # Sums of fewer zeros, in another order.
    torch.testing.assert_close(smaller.eval()(images), network(images), rtol=1e-12, atol=1e-14)
    assert {name for name, value in smaller.state_dict().items() if value.shape != before[name].shape} == {
        name for name in before if name.startswith(("fc1.", "bn1.")) and before[name].dim()
    } - {name for name in before if case == "kddp" and name.startswith("bn1.")} | {"fc2.weight"}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    # Each layer says what it is, and takes a step of training.
    assert smaller.fc1.out_features == smaller.fc2.in_features == int(kept.sum())
    smaller.train()(images).sum().backward()
    assert all(value.grad is not None for value in smaller.parameters())


def test_what_is_left_are_the_rows_and_columns_of_the_survivors():
    network, kept = perceptron(hidden=4), torch.tensor([True, False, True, False])
    smaller = without_neurons(network, hidden_layer(network, "fc1"), kept)
    assert torch.equal(smaller.fc1.weight, network.fc1.weight[[0, 2]])
    assert torch.equal(smaller.fc1.bias, network.fc1.bias[[0, 2]])
    assert torch.equal(smaller.fc2.weight, network.fc2.weight[:, [0, 2]])
    assert torch.equal(smaller.fc2.bias, network.fc2.bias)
    assert smaller.fc2.weight.data_ptr() != network.fc2.weight.data_ptr()


@pytest.mark.parametrize(
    ("name", "before", "survivors", "after"),
    [
        ("kddp-sn-50", 85_104, 45, 82_169),
        ("kddp-sn-100", 114_454, 83, 104_475),
        ("kddp-sn-500", 349_254, 264, 210_722),
    ],
)
def test_published_sizes(name: str, before: int, survivors: int, after: int):
    """KDDP table 2, as Keras counts: every neuron is 587 parameters."""
    network = build_model(settings(name), (3, 32, 32), 10, seed=0)
    hidden = hidden_layer(network, None)
    assert hidden == Hidden("fc1", (), "fc1_relu", "fc2")
    width = network.fc1.out_features
    smaller = without_neurons(network, hidden, torch.randperm(width) < survivors)
    assert (keras_count(network), keras_count(smaller)) == (before, after)
    assert before - after == 587 * (width - survivors)
    assert smaller(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_means_are_those_of_every_sample_in_eval_mode():
    """2,500 samples, which are not one batch; the statistics of batch norm and the layers' modes stay."""
    network, examples = normalised().train(), split(2500)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    means = mean_activations(network, hidden_layer(network, None), examples)
    hidden = network.eval()[:4](examples.images)
    torch.testing.assert_close(means, hidden.double().mean(dim=0))
    assert means[SILENT].tolist() == [0, 0, 0]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not means.requires_grad


def test_images_are_not_mirrored():
    examples = split(30)
    mirrored = Split(examples.images, examples.labels, mirror="random")
    network = perceptron()
    hidden = hidden_layer(network, None)
    assert torch.equal(mean_activations(network, hidden, mirrored), mean_activations(network, hidden, examples))


def three_hidden() -> nn.Sequential:
    widths = [SIDE * SIDE, 3, 50, 9, CLASSES]
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number in range(1, 5):
        layers[f"fc{number}"] = nn.Linear(widths[number - 1], widths[number])
        layers[f"fc{number}_relu"] = nn.ReLU()
    del layers["fc4_relu"]
    return named(layers, seed=0)


def test_the_layer_with_the_most_weights_is_taken():
    """fc1 has 108, fc2 150, fc3 450 and fc4, the classifier, is no hidden layer."""
    assert hidden_layer(three_hidden(), None) == Hidden("fc3", (), "fc3_relu", "fc4")
    assert hidden_layer(three_hidden(), "fc2") == Hidden("fc2", (), "fc2_relu", "fc3")


def test_names_that_are_no_hidden_layers_are_told_with_the_nearest():
    with pytest.raises(
        UserError, match=r"^method\.layer: 'fc11' is not known; did you mean 'fc1'\? allowed: fc1, fc2, fc3$"
    ):
        hidden_layer(three_hidden(), "fc11")
    with pytest.raises(UserError, match=r"^method\.layer: 'fc4' is not known; .*allowed: fc1, fc2, fc3$"):
        hidden_layer(three_hidden(), "fc4")


@pytest.mark.parametrize("family", ["resnet", "densenet", "nin", "keras-resnet"])
def test_networks_without_hidden_layers_are_the_users_mistake(family: str):
    with pytest.raises(UserError, match=r"^method\.layer: 'null' is not possible, since the student has no hidden"):
        hidden_layer(small(family), None)


def test_a_classifier_alone_has_no_hidden_layer():
    with pytest.raises(UserError, match="no hidden fully connected layer"):
        hidden_layer(convolutional(), "fc1")


def test_what_a_neuron_of_zero_could_still_move_is_not_taken_for_a_hidden_layer():
    """A sigmoid or a batch norm behind the ReLU makes something of zero."""
    for name, layer in {"sigmoid": nn.Sigmoid(), "bn": nn.BatchNorm1d(5)}.items():
        children = dict(perceptron().named_children())
        ordered = {**{key: children[key] for key in ("flatten", "fc1", "fc1_relu")}, name: layer}
        network = named({**ordered, "fc2": children["fc2"]}, seed=0)
        with pytest.raises(UserError, match="no hidden fully connected layer"):
            hidden_layer(network, None)


def test_a_network_that_is_no_sequence_has_none():
    with pytest.raises(UserError, match="no hidden fully connected layer"):
        hidden_layer(randomise(nn.ModuleDict({"fc1": nn.Linear(2, 2)}), 0), None)
