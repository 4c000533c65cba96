"""The architectures, each declared once as a sequence of plain torch layers."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kdx.config.networks import NetworkSettings
from kdx.errors import UserError
from kdx.models.convnet import convnet
from kdx.models.densenet import densenet
from kdx.models.kddp_student import kddp
from kdx.models.keras_resnet import keras_resnet
from kdx.models.lenet import lenet
from kdx.models.mlp import mlp
from kdx.models.resnet import resnet
from kdx.rng import with_seed
from kdx.storage.tensors import load_weights

Shape = tuple[int, int, int]

_BUILDERS: Mapping[str, Callable[[Any, Shape, int], nn.Sequential]] = {
    "mlp": mlp,
    "lenet": lenet,
    "convnet": convnet,
    "resnet": resnet,
    "densenet": densenet,
    "keras-resnet": keras_resnet,
    "kddp": kddp,
}


def build_model(settings: NetworkSettings, image_shape: Shape, classes: int, seed: int) -> nn.Sequential:
    """Build the network for images of `image_shape` (channels, height, width), with initial weights drawn from `seed`.

    Raises UserError if the images are too small for the network, and TypeError if a package's network is not the plain
    sequence of named layers that methods and measurements rely on.
    """
    least = settings.smallest_side
    if min(image_shape[1:]) < least:
        raise UserError(
            f"{settings.name}: images of {image_shape[1]}x{image_shape[2]} pixels are too small for "
            f"{settings.sized_by}={getattr(settings, settings.sized_by)}; allowed: {least}x{least} or more"
        )
    own = _BUILDERS.get(settings.family)
    build = settings.build if own is None else partial(own, settings)
    network = with_seed(seed, "init", lambda: build(image_shape, classes))
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
