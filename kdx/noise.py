"""The random numbers of one step, drawn outside of it, for every noisy layer at once."""

from typing import Any

import torch
from torch import Tensor, nn

from kdx.layers import NoisyLayer
from kdx.measure.accuracy import evaluating


class NoiseSource:
    """Buffers for the noise of every `NoisyLayer` of a model, filled anew for each step from one generator."""

    def __init__(self, model: nn.Module, images: Tensor, generator: torch.Generator) -> None:
        """Learn the shapes from one pass of `images`, a batch of the size that will be trained on."""
        self._generator = generator
        self._layers = {
            f"{name}.noise": layer for name, layer in model.named_modules() if isinstance(layer, NoisyLayer)
        }
        self.buffers = _empty_noise(model, self._layers, images)

    def draw(self) -> dict[str, Tensor]:
        """Fresh noise, by buffer name; the same memory every time."""
        for name, layer in self._layers.items():
            layer.draw(self.buffers[name], self._generator)
        return self.buffers

    def position(self) -> Tensor:
        """Where the generator stands, for a checkpoint."""
        return self._generator.get_state()

    def seek(self, position: Tensor) -> None:
        """Go on from a position that `position` gave."""
        self._generator.set_state(position)


def _empty_noise(model: nn.Module, layers: dict[str, NoisyLayer], images: Tensor) -> dict[str, Tensor]:
    noise: dict[str, Tensor] = {}

    def shaped(name: str, layer: NoisyLayer) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
            noise[name] = layer.new_noise(inputs[0], outputs)

        return layer.register_forward_hook(hook)

    hooks = [shaped(name, layer) for name, layer in layers.items()]
    try:
        # In eval mode, so that looking at the shapes does not move the statistics of a batch norm.
        with evaluating(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return noise
