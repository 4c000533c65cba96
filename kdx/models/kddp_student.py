"""SN_n, the student of KDDP: a stem, one identity block and a hidden layer of n units."""

from collections import OrderedDict

from torch import nn

from kdx.config.networks import KddpSettings
from kdx.models.blocks import Residual, named
from kdx.models.init import glorot_uniform
from kdx.models.keras_resnet import batch_norm
from kdx.models.mlp import fully_connected


def kddp(settings: KddpSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """7x7 convolution, max pooling, an identity block, average pooling, fc1, fc2.

    Images (batch, C, H, W) to logits (batch, classes). On 3x32x32, fc1 sees 3x3x64, so each of its units is 576 + 1 +
    10 = 587 parameters. The paper does not print the order of layers within the block: that of Keras' ResNet50 is kdx's
    choice.
    """
    channels = settings.channels
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(image_shape[0], channels, 7, stride=2, padding=3),
        bn1=batch_norm(channels),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=2),
        block=_identity_block(channels),
        pool2=nn.AvgPool2d(2),
    )
    height, width = (_pooled(side) for side in image_shape[1:])
    layers.update(fully_connected(channels * height * width, settings.hidden, classes))
    return glorot_uniform(nn.Sequential(layers))


def _identity_block(channels: int) -> Residual:
    branch = named(
        conv1=nn.Conv2d(channels, channels, 1),
        bn1=batch_norm(channels),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(channels, channels, 3, padding=1),
        bn2=batch_norm(channels),
        relu2=nn.ReLU(),
        conv3=nn.Conv2d(channels, channels, 1),
        bn3=batch_norm(channels),
    )
    return Residual(branch, after=nn.ReLU())


def _pooled(side: int) -> int:
    """The side after conv1, pool1 and pool2: 32 becomes 16, 7 and 3."""
    return ((((side - 1) // 2 + 1) - 3) // 2 + 1) // 2
