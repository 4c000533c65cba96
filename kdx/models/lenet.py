"""LeNet as in Caffe: convolutions without padding, each followed by max pooling."""

from collections import OrderedDict

from torch import nn

from kdx.config.networks import PlainSettings
from kdx.models.mlp import fully_connected

KERNEL = 5


def lenet(settings: PlainSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """conv5-MP2 for each of `channels`, then fully connected layers: images (batch, C, H, W) to logits.

    With channels 20 and 50 and one hidden layer of 500 it is the Le-C of VS (657,080 parameters on 3x32x32) and the
    MNIST teacher of the Noisy paper (431,080 on 1x28x28). A ReLU follows every convolution and hidden layer.
    """
    inputs, height, width = image_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, channels in enumerate(settings.channels, start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, channels, KERNEL)
        layers[f"conv{number}_relu"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        inputs, height, width = channels, (height - KERNEL + 1) // 2, (width - KERNEL + 1) // 2
    layers.update(fully_connected(inputs * height * width, settings.hidden, classes))
    return nn.Sequential(layers)
