"""The architectures: each declared once, as plain torch layers."""

from torch import nn

from kdx.config import NetworkSettings
from kdx.models.lenet import lenet
from kdx.models.mlp import mlp
from kdx.streams import seeded

FAMILIES = {"mlp": mlp, "lenet": lenet}


def build_model(settings: NetworkSettings, image_shape: tuple[int, int, int], classes: int, seed: int) -> nn.Sequential:
    """Build the network for images of `image_shape` (channels, height, width), with initial weights drawn from `seed`.

    Raises UserError where the images are too small for the network.
    """
    family = FAMILIES[settings.family]
    return seeded(seed, "init", lambda: family(settings, image_shape, classes))
