"""Weights held at zero: the masks of magnitude pruning, and layers that keep them (Han et al. 2015)."""

from collections.abc import Mapping
from math import sqrt
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx.methods.modifier import Modifier
from kdx.models.layers import NoisyDropout
from kdx.models.surgery import Geometry, replace_layers
from kdx.models.weights import weight_matrices

Linear = TypeVar("Linear", bound=nn.Linear)
Conv2d = TypeVar("Conv2d", bound=nn.Conv2d)


class MaskedLinear(nn.Linear):
    """`nn.Linear` whose weights are zero where `mask` (bool, in the weight's shape) is false; the bias is whole."""

    mask: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in) to (batch, out)."""
        return F.linear(input, surviving(self), self.bias)


class MaskedConv2d(nn.Conv2d):
    """`nn.Conv2d` whose weights are zero where `mask` (bool, in the weight's shape) is false; the bias is whole."""

    mask: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in, H, W) to (batch, out, H', W')."""
        return self._conv_forward(input, surviving(self), self.bias)


def surviving(layer: MaskedLinear | MaskedConv2d) -> Tensor:
    """The weights, zero outside the mask; selected, because a product with zero can be a negative zero."""
    return torch.where(layer.mask, layer.weight, 0.0)


class Masking(Modifier):
    """Holds at zero every weight that is exactly zero when training begins; the procedure decides which those are.

    With `rescale_dropout` the dropout rate behind each layer is multiplied by sqrt(C_ir / C_io), the square root of the
    fraction of the layer's weights that survive (Han et al. 2015, eq. 3).
    """

    rescale_dropout: bool

    def replace_layers(self, student: nn.Module) -> nn.Module:
        """Mask the linear and convolutional layers that contain zeros; raises ValueError if there is no such layer."""
        kept: float | None = None

        # `replace_layers` goes through the layers in their order, so the last layer seen is the one before a dropout.
        def replacement(layer: nn.Module) -> nn.Module | None:
            nonlocal kept
            if isinstance(layer, nn.Linear | nn.Conv2d):
                mask = layer.weight.detach() != 0
                kept = mask.float().mean().item()
                # A layer without zeros needs no mask, which would cost as much time as the layer itself.
                return layer if kept == 1 else _masked(layer, mask)
            if self.rescale_dropout and kept is not None and isinstance(layer, NoisyDropout):
                return NoisyDropout(layer.rate * sqrt(kept))
            return None

        replace_layers(student, replacement)
        if kept is None:
            raise ValueError("the student has no nn.Linear and no nn.Conv2d to mask")
        return student

    def finalize(self, student: nn.Module) -> nn.Module:
        """Plain layers again, with exact zeros outside the masks."""
        replace_layers(student, lambda layer: _plain(layer) if isinstance(layer, MaskedLinear | MaskedConv2d) else None)
        return student


def _masked(layer: nn.Linear | nn.Conv2d, mask: Tensor) -> MaskedLinear | MaskedConv2d:
    masked = _linear(MaskedLinear, layer) if isinstance(layer, nn.Linear) else _conv2d(MaskedConv2d, layer)
    masked.register_buffer("mask", mask)
    return _given(masked, layer.weight, layer.bias)


def _plain(layer: MaskedLinear | MaskedConv2d) -> nn.Linear | nn.Conv2d:
    plain = _linear(nn.Linear, layer) if isinstance(layer, nn.Linear) else _conv2d(nn.Conv2d, layer)
    return _given(plain, nn.Parameter(surviving(layer).detach()), layer.bias)


def _given(layer, weight, bias):
    layer.weight, layer.bias = weight, bias
    return layer


def _linear(kind: type[Linear], like: nn.Linear) -> Linear:
    return kind(like.in_features, like.out_features, bias=like.bias is not None, device="meta")


def _conv2d(kind: type[Conv2d], like: nn.Conv2d) -> Conv2d:
    return kind(**Geometry(like).arguments, bias=like.bias is not None, device="meta")


Masks = dict[str, Tensor]
"""The mask of surviving weights by layer name, bool in the weight's shape."""
Weights = Mapping[str, Tensor]


def masks_by_quality(weights: Weights, q: float) -> Masks:
    """Remove |w| < q times the standard deviation of the layer's surviving weights (Han et al. 2015, section 3.1)."""
    return {name: (weight != 0) & (_relative(weight) >= q) for name, weight in weights.items()}


def masks_by_fraction(weights: Weights, keep: float) -> tuple[Masks, float]:
    """Masks that keep the fraction `keep` of all weights by one quality factor for all layers, and that factor.

    The factor is the smallest ratio of a survivor to its layer's standard deviation. Of weights with exactly this ratio
    the last ones are removed, so that the number of survivors is exact.
    """
    ratios = torch.cat([_relative(weight).flatten() for weight in weights.values()])
    mask = _largest(ratios, max(1, round(keep * len(ratios))))
    parts = mask.split([weight.numel() for weight in weights.values()])
    masks = {name: part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}
    return masks, ratios[mask].min().item()


def masks_by_layer(weights: Weights, sparsity: Mapping[str, float]) -> Masks:
    """Masks without the smallest weights of each layer, whose fraction `sparsity` gives, exact to one weight."""
    return {
        name: _largest(weight.abs().flatten(), round((1 - sparsity[name]) * weight.numel())).view_as(weight)
        for name, weight in weights.items()
    }


def cubic_sparsity(initial: float, final: float, step: int, steps: int) -> float:
    """The sparsity after t of n steps, s_t = s_f + (s_i - s_f)(1 - t/n)^3 (Zhu and Gupta 2017, eq. 1)."""
    return final + (initial - final) * (1 - step / steps) ** 3


def prune(network: nn.Module, masks: Masks) -> None:
    """Set the weights outside the masks to zero, in place."""
    for name, weight in weight_matrices(network).items():
        weight.masked_fill_(~masks[name].to(weight.device), 0.0)


def _relative(weight: Tensor) -> Tensor:
    """|w| over the standard deviation of those that are not zero; zero where w is.

    A single survivor has no deviation: it is greater than every multiple of it, and the ratio the greatest number.
    """
    survivors = weight[weight != 0]
    deviation = survivors.std(correction=0) if survivors.any() else weight.new_ones(())
    return torch.where(weight != 0, weight.abs() / deviation, 0.0).clamp(max=torch.finfo(weight.dtype).max)


def _largest(values: Tensor, count: int) -> Tensor:
    """A mask of exactly `count` of the largest values; of equal ones the first are taken."""
    mask = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    mask[values.argsort(descending=True, stable=True)[:count]] = True
    return mask
