"""Sequences of convolutions and poolings: VGG-19, Network in Network, an AlexNet for CIFAR-10, Noisy Teachers' LeNets.

The Noisy Teachers paper gives the students, Teacher2 and the SVHN network by counts only, so conf/student lists what
kdx derived from them: the widths that give each layer's printed number of multiplications (Student1: 4.92, 45.88, 8.26
and 2.11 million), and for Teacher2 AlexNet's own widths with 5x5, 5x5 and 3x3 kernels and two layers of 2048, which
give both 375 M multiplications and 16.3 M parameters. Students 2 and 3 come out at 11.2497 M and 6.7441 M where the
paper's sums are 11.251 and 6.745.
"""

from collections import Counter, OrderedDict

from torch import nn

from kdx.config.networks import ConvnetSettings
from kdx.models.blocks import GlobalAverage, padding_to
from kdx.models.init import he_normal
from kdx.models.mlp import fully_connected


def convnet(settings: ConvnetSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The layers that `settings` lists, then the classifier: images (batch, C, H, W) to logits (batch, classes).

    Layers are named by kind and number: conv1, conv1_relu, conv2, ..., pool1, ..., dropout1, ..., fc1.
    """
    channels, height, width = image_shape
    layers = padding_to(settings.pad_to, height, width)
    height, width = max(height, settings.pad_to), max(width, settings.pad_to)
    numbers: Counter[str] = Counter()
    for code in settings.layers:
        kind = {"C": "conv", "D": "dropout"}.get(code[0], "pool")
        numbers[kind] += 1
        name = f"{kind}{numbers[kind]}"
        if kind == "conv":
            kernel, filters = map(int, code[1:].split("@"))
            filters = _scaled(filters, settings)
            layers[name] = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
            layers[f"{name}_relu"] = nn.ReLU()
            channels = filters
        elif kind == "dropout":
            layers[name] = nn.Dropout(float(code[1:]))
        else:
            window = int(code[2:])
            # Caffe rounds the size of a pooled image up.
            layers[name] = (nn.MaxPool2d if code[0] == "M" else nn.AvgPool2d)(window, stride=2, ceil_mode=True)
            height, width = (-(-(side - window) // 2) + 1 for side in (height, width))
    if settings.head == "average":
        layers.update(_averaging(f"conv{numbers['conv'] + 1}", channels, classes))
    else:
        layers.update(_fully_connected((channels, height, width), settings, classes))
    return he_normal(nn.Sequential(layers))


def _averaging(name: str, channels: int, classes: int) -> "OrderedDict[str, nn.Module]":
    """A 1x1 convolution to the classes, its ReLU, as in Network in Network (Lin et al. 2014), and global averaging."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        {name: nn.Conv2d(channels, classes, 1), f"{name}_relu": nn.ReLU()}
    )
    layers.update(average=GlobalAverage(), flatten=nn.Flatten())
    return layers


def _fully_connected(
    features: tuple[int, int, int], settings: ConvnetSettings, classes: int
) -> "OrderedDict[str, nn.Module]":
    channels, height, width = features
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if settings.spread:
        layers["spread"] = nn.AdaptiveAvgPool2d(settings.spread)
        height = width = settings.spread
    hidden = [_scaled(units, settings) for units in settings.hidden]
    layers.update(fully_connected(channels * height * width, hidden, classes, settings.hidden_dropout))
    return layers


def _scaled(width: int, settings: ConvnetSettings) -> int:
    return max(1, int(width * settings.width))
