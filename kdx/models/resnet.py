"""ResNet with bottlenecks (He et al. 2016), as in torchvision: ResNet-152 and its refinements."""

from collections import OrderedDict

from torch import nn

from kdx.config.networks import ResnetSettings
from kdx.models.blocks import GlobalAverage, Residual, named
from kdx.models.init import he_normal

EXPANSION = 4


def resnet(settings: ResnetSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """7x7 convolution, max pooling, the stages, global averaging, one linear layer: images to logits.

    Images are (batch, C, H, W), logits (batch, classes). Each stage after the first halves height and width by the 3x3
    convolution of its first block, as torchvision does.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(image_shape[0], settings.stem, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(settings.stem),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
    )
    inputs = settings.stem
    for stage, (count, channels) in enumerate(zip(settings.blocks, settings.channels, strict=True), start=1):
        stride = 1 if stage == 1 else 2
        blocks = [_bottleneck(inputs, channels, stride)]
        inputs = EXPANSION * channels
        blocks += [_bottleneck(inputs, channels, stride=1) for _ in range(count - 1)]
        layers[f"stage{stage}"] = nn.Sequential(*blocks)
    layers.update(average=GlobalAverage(), flatten=nn.Flatten(), fc1=nn.Linear(inputs, classes))
    return he_normal(nn.Sequential(layers))


def _bottleneck(inputs: int, channels: int, stride: int) -> Residual:
    outputs = EXPANSION * channels
    branch = named(
        conv1=nn.Conv2d(inputs, channels, 1, bias=False),
        bn1=nn.BatchNorm2d(channels),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False),
        bn2=nn.BatchNorm2d(channels),
        relu2=nn.ReLU(),
        conv3=nn.Conv2d(channels, outputs, 1, bias=False),
        bn3=nn.BatchNorm2d(outputs),
    )
    if inputs == outputs and stride == 1:
        return Residual(branch, after=nn.ReLU())
    shortcut = named(
        conv=nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
        bn=nn.BatchNorm2d(outputs),
    )
    return Residual(branch, shortcut, after=nn.ReLU())
