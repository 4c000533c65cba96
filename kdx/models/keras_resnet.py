"""ResNet v2 of Keras' example cifar10_resnet.py; with six blocks per stage it is ResNet56 v2, the teacher of KDDP."""

from collections import OrderedDict

from torch import nn

from kdx.config.networks import KerasResnetSettings
from kdx.models.blocks import GlobalAverage, Residual
from kdx.models.init import he_normal


def keras_resnet(settings: KerasResnetSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """3x3 convolution, the stages, batch norm and ReLU, average pooling, one linear layer: images to logits.

    Images are (batch, C, H, W), logits (batch, classes). Batch norm and ReLU come before each convolution of a block,
    except in the very first one, which follows the stem's own. A block's bottleneck has as many channels as the
    previous stage (in the first stage, the stem) puts out. Keras counts the moving statistics of batch norm as
    parameters: 1,673,738 in all.
    """
    inputs = settings.stem
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(image_shape[0], inputs, 3, padding=1), bn1=batch_norm(inputs), relu1=nn.ReLU()
    )
    for stage, (count, outputs) in enumerate(zip(settings.blocks, settings.channels, strict=True), start=1):
        blocks = [_block(inputs, inputs, outputs, first_of=stage)]
        blocks += [_block(outputs, inputs, outputs) for _ in range(count - 1)]
        layers[f"stage{stage}"] = nn.Sequential(*blocks)
        inputs = outputs
    layers.update(bn2=batch_norm(inputs), relu2=nn.ReLU())
    layers.update(average=GlobalAverage(), flatten=nn.Flatten(), fc1=nn.Linear(inputs, classes))
    return he_normal(nn.Sequential(layers))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the constants of Keras; torch's momentum is 1 minus that of Keras."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _block(inputs: int, channels: int, outputs: int, first_of: int | None = None) -> Residual:
    """A bottleneck; the first of a stage projects its inputs and, except in the first stage, halves the image."""
    stride = 1 if first_of in (None, 1) else 2
    branch: OrderedDict[str, nn.Module] = OrderedDict()
    if first_of != 1:
        branch.update(bn1=batch_norm(inputs), relu1=nn.ReLU())
    branch.update(
        conv1=nn.Conv2d(inputs, channels, 1, stride=stride),
        bn2=batch_norm(channels),
        relu2=nn.ReLU(),
        conv2=nn.Conv2d(channels, channels, 3, padding=1),
        bn3=batch_norm(channels),
        relu3=nn.ReLU(),
        conv3=nn.Conv2d(channels, outputs, 1),
    )
    return Residual(nn.Sequential(branch), nn.Conv2d(inputs, outputs, 1, stride=stride) if first_of else None)
