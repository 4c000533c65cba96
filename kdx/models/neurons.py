"""The hidden neurons of a network that is a plain sequence of named layers: finding and removing them."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn

from kdx.errors import UserError, unknown
from kdx.models.layers import NoisyDropout
from kdx.models.surgery import select_inputs, select_outputs

# Layers that pass each neuron on separately and map zero to zero.
_PASSING = (nn.Dropout, NoisyDropout, nn.Identity, nn.Flatten)


@dataclass(frozen=True)
class Hidden:
    """A hidden fully connected layer: its name, and those of its batch norms, its ReLU and the next weight layer."""

    layer: str
    norms: tuple[str, ...]
    activation: str
    following: str


def hidden_layer(network: nn.Module, name: str | None) -> Hidden:
    """The hidden fully connected layer `name`; for None the one with the most weights, the first of several.

    Raises UserError for another name, and for a network that has no such layer.
    """
    found = {hidden.layer: hidden for hidden in _hidden_layers(network)}
    if not found:
        raise UserError(
            f"method.layer: '{name or 'null'}' is not possible, since the student has no hidden fully connected layer"
            " with a ReLU behind it; allowed: another student, such as lenet-300-100 or kddp-sn-100"
        )
    if name is None:
        return max(found.values(), key=lambda hidden: _linear(network, hidden.layer).weight.numel())
    if name not in found:
        raise unknown("method.layer", name, found)
    return found[name]


def without_neurons(network: nn.Sequential, hidden: Hidden, kept: Tensor) -> nn.Sequential:
    """A copy of `network` whose hidden layer keeps only the neurons of the mask `kept` (neurons,).

    It computes the same function if the removed neurons are always zero.
    """
    smaller = deepcopy(network)
    for name in (hidden.layer, *hidden.norms):
        select_outputs(smaller.get_submodule(name), kept)
    select_inputs(_linear(smaller, hidden.following), kept)
    return smaller


def _hidden_layers(network: nn.Module) -> Iterator[Hidden]:
    layers = list(network.named_children()) if isinstance(network, nn.Sequential) else []
    for position, (name, layer) in enumerate(layers):
        hidden = _followed(name, layers[position + 1 :]) if isinstance(layer, nn.Linear) else None
        if hidden is not None:
            yield hidden


def _followed(name: str, behind: list[tuple[str, nn.Module]]) -> Hidden | None:
    """The layer `name` with those behind it, as far as they are batch norm, one ReLU, then what passes on."""
    norms: list[str] = []
    activation = None
    for other, layer in behind:
        if activation is None and isinstance(layer, nn.BatchNorm1d):
            norms.append(other)
        elif activation is None and isinstance(layer, nn.ReLU):
            activation = other
        elif activation is not None and isinstance(layer, nn.Linear):
            return Hidden(name, tuple(norms), activation, other)
        elif not isinstance(layer, _PASSING):
            return None
    return None


def _linear(network: nn.Module, name: str) -> nn.Linear:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
