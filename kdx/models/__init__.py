"""The architectures, each declared once as a sequence of plain torch layers."""

from pathlib import Path

from torch import nn

from kdx.config.networks import NetworkSettings
from kdx.errors import UserError
from kdx.storage.tensors import load_weights

Shape = tuple[int, int, int]


def build_model(settings: "NetworkSettings", image_shape: Shape, classes: int, seed: int) -> "nn.Sequential":
    """Build the network for images of `image_shape` (channels, height, width), with initial weights drawn from `seed`.

    Raises UserError if the images are too small for the network, and TypeError if a package's network is not the plain
    sequence of named layers that methods and measurements rely on.
    """
    # Here, so that reading settings does not import torch.
    from torch import nn

    from kdx.rng import seeded

    least = settings.smallest_side
    if min(image_shape[1:]) < least:
        raise UserError(
            f"{settings.name}: images of {image_shape[1]}x{image_shape[2]} pixels are too small for "
            f"{settings.sized_by}={getattr(settings, settings.sized_by)}; allowed: {least}x{least} or more"
        )
    network = seeded(seed, "init", lambda: settings.build(image_shape, classes))
    if not isinstance(network, nn.Sequential):
        raise TypeError(f"{settings.family}: its build gives a {type(network).__name__}; allowed: an nn.Sequential")
    return network


def initial_network(
    settings: NetworkSettings, checkpoint: str | None, image_shape: Shape, classes: int, seed: int, key: str
) -> nn.Module:
    """The network with the weights of a checkpoint, or drawn from `seed` where that is None.

    Raises UserError, which names `key`, where the checkpoint does not fit.
    """
    network = build_model(settings, image_shape, classes, seed)
    return network if checkpoint is None else load_weights(Path(checkpoint), network, f"{key}.checkpoint")
