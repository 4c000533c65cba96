"""The families of networks by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from kdx.models import Shape
from kdx.models.convnet import convnet
from kdx.models.densenet import densenet
from kdx.models.kddp import kddp
from kdx.models.keras_resnet import keras_resnet
from kdx.models.lenet import lenet
from kdx.models.mlp import mlp
from kdx.models.resnet import resnet

FAMILIES: dict[str, Callable[[Any, Shape, int], nn.Sequential]] = {
    "mlp": mlp,
    "lenet": lenet,
    "convnet": convnet,
    "resnet": resnet,
    "densenet": densenet,
    "keras-resnet": keras_resnet,
    "kddp": kddp,
}
