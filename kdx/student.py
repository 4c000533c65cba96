"""A network before its training."""

from pathlib import Path

from torch import nn

from kdx.models import Shape, build_model
from kdx.models.settings import NetworkSettings
from kdx.weights import load_weights


def initial_network(
    settings: NetworkSettings, checkpoint: str | None, image_shape: Shape, classes: int, seed: int, key: str
) -> nn.Module:
    """The network with the weights of a checkpoint, or drawn from `seed` where that is None.

    Raises UserError, which names `key`, where the checkpoint does not fit.
    """
    network = build_model(settings, image_shape, classes, seed)
    return network if checkpoint is None else load_weights(Path(checkpoint), network, f"{key}.checkpoint")
