"""The number of multiplications that a network makes for one image.

Counted are products of a weight and an input in nn.Linear and nn.Conv2d, including those with zero padding, as the
Noisy Teachers paper counts; not those of batch norm, average pooling or biases.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdx.models.layers import eval_mode


def multiplications(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """The count for an image of `image_shape` (C, H, W); a layer that is used twice counts twice."""
    return sum(positions * weight.numel() for weight, positions in _uses(model, image_shape))


def nonzero_multiplications(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """The same count without the weights that are exactly zero, which a sparse runtime can skip."""
    return sum(positions * int(weight.count_nonzero()) for weight, positions in _uses(model, image_shape))


def _uses(model: nn.Module, image_shape: tuple[int, ...]) -> list[tuple[Tensor, int]]:
    """Every weight and the number of positions at which it is used: height times width for filters.

    For a matrix that is 1, or L if its inputs are (batch, L, in).

    The network sees one black image on its own device: computing shapes on the meta device would import torch's
    compiler, which takes longer than any network here.
    """
    found: list[tuple[Tensor, int]] = []

    def recording(weight: Tensor) -> Callable[..., None]:
        return lambda _layer, _inputs, outputs: found.append((weight, outputs.numel() // len(weight)))

    hooks = [
        layer.register_forward_hook(recording(layer.weight))
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    try:
        with eval_mode(model) as device:
            model(torch.zeros(1, *image_shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return found
