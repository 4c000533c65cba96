"""The weight matrices of a network: what is pruned, counted, decayed and regularised in blocks."""

from torch import Tensor, nn


def weight_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices (out, in) and filters (out, in, kh, kw) by parameter name, in order; no bias, norm or variance."""
    parameters = network.named_parameters()
    return {name: parameter for name, parameter in parameters if name.endswith("weight") and parameter.dim() > 1}


def weight_matrices(network: nn.Module) -> dict[str, Tensor]:
    """The same by layer name, detached; a network that is one layer has its type's name, a shared weight comes once."""
    return {
        name.removesuffix("weight").removesuffix(".") or type(network).__name__.lower(): weight.detach()
        for name, weight in weight_parameters(network).items()
    }
