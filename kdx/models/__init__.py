"""The architectures: each declared once, as plain torch layers."""

from typing import TYPE_CHECKING

from kdx.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from kdx.models.settings import Network

Shape = tuple[int, int, int]


def build_model(settings: "Network", image_shape: Shape, classes: int, seed: int) -> "nn.Sequential":
    """Build the network for images of `image_shape` (channels, height, width), with initial weights drawn from `seed`.

    Raises UserError where the images are too small for the network.
    """
    # Here, so that reading settings does not import torch.
    from kdx.models.families import FAMILIES
    from kdx.streams import seeded

    least = settings.smallest_side
    if min(image_shape[1:]) < least:
        raise UserError(
            f"{settings.name}: images of {image_shape[1]}x{image_shape[2]} pixels are too small for "
            f"{settings.sized_by}={getattr(settings, settings.sized_by)}; allowed: {least}x{least} or more"
        )
    family = FAMILIES[settings.family]
    return seeded(seed, "init", lambda: family(settings, image_shape, classes))
