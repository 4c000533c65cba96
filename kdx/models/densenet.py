"""DenseNet with bottlenecks and halving transitions (Huang et al. 2017), as in torchvision: DenseNet-121."""

from torch import nn

from kdx.config.networks import DensenetSettings
from kdx.models.blocks import Dense, GlobalAverage, named, padding_to
from kdx.models.init import he_normal


def densenet(settings: DensenetSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """7x7 convolution, max pooling, dense blocks with transitions in between, global averaging, one linear layer.

    Images (batch, C, H, W) to logits (batch, classes).
    """
    channels = settings.stem
    layers = padding_to(settings.pad_to, *image_shape[1:])
    layers.update(
        conv1=nn.Conv2d(image_shape[0], channels, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(channels),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
    )
    for number, count in enumerate(settings.blocks, start=1):
        if number > 1:
            layers[f"transition{number - 1}"] = _transition(channels)
            channels //= 2
        block = [_dense(channels + index * settings.growth, settings) for index in range(count)]
        layers[f"block{number}"] = nn.Sequential(*block)
        channels += count * settings.growth
    layers.update(bn2=nn.BatchNorm2d(channels), relu2=nn.ReLU())
    layers.update(average=GlobalAverage(), flatten=nn.Flatten(), fc1=nn.Linear(channels, classes))
    return he_normal(nn.Sequential(layers))


def _dense(inputs: int, settings: DensenetSettings) -> Dense:
    between = settings.bottleneck * settings.growth
    branch = named(
        bn1=nn.BatchNorm2d(inputs),
        relu1=nn.ReLU(),
        conv1=nn.Conv2d(inputs, between, 1, bias=False),
        bn2=nn.BatchNorm2d(between),
        relu2=nn.ReLU(),
        conv2=nn.Conv2d(between, settings.growth, 3, padding=1, bias=False),
    )
    return Dense(branch)


def _transition(inputs: int) -> nn.Sequential:
    return named(
        bn=nn.BatchNorm2d(inputs),
        relu=nn.ReLU(),
        conv=nn.Conv2d(inputs, inputs // 2, 1, bias=False),
        pool=nn.AvgPool2d(2),
    )
