"""The random numbers of one step, drawn outside of it, for every noisy layer at once."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdx.models.layers import NoisyLayer, eval_mode
from kdx.training.objective import NoiseSpec


class NoiseSource:
    """Buffers for the noise of every `NoisyLayer` of a model and of every `NoiseSpec` of its objective.

    They are filled before each step from one generator.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, generator: torch.Generator, draws: Mapping[str, NoiseSpec] | None = None
    ) -> None:
        """Find the shapes by one forward pass of `images`, a batch of the size that is trained on."""
        self.generator = generator
        layers = {f"{name}.noise": layer for name, layer in model.named_modules() if isinstance(layer, NoisyLayer)}
        self.buffers = _empty_noise(model, layers, images)
        self._fill: dict[str, Callable[[Tensor, torch.Generator], object]]
        self._fill = {name: layer.draw for name, layer in layers.items()}
        for name, draw in (draws or {}).items():
            assert name not in self.buffers, f"two kinds of noise are called {name}"
            self.buffers[name] = draw.new(len(images)).to(images.device)
            self._fill[name] = draw.fill

    def draw(self) -> dict[str, Tensor]:
        """Draw new noise, by buffer name, into the same memory every time."""
        for name, fill in self._fill.items():
            fill(self.buffers[name], self.generator)
        return self.buffers

    def position(self) -> Tensor:
        """The state of the generator, for a checkpoint."""
        return self.generator.get_state()

    def seek(self, position: Tensor) -> None:
        """Restore a generator state that `position` returned."""
        self.generator.set_state(position)


def _empty_noise(model: nn.Module, layers: dict[str, NoisyLayer], images: Tensor) -> dict[str, Tensor]:
    noise: dict[str, Tensor] = {}

    def shaped(name: str, layer: NoisyLayer) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
            noise[name] = layer.new_noise(inputs[0], outputs)

        return layer.register_forward_hook(hook)

    hooks = [shaped(name, layer) for name, layer in layers.items()]
    try:
        # In eval mode, so that this pass does not update batch norm's statistics.
        with eval_mode(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return noise
