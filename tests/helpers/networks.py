"""One small network of every family, for tests of what all of them must do."""

from collections.abc import Callable
from functools import cache

from torch import nn

from helpers.miniature import CLASSES, perceptron
from kdx.config.compose import compose_config
from kdx.config.networks import (
    ConvnetSettings,
    DensenetSettings,
    KddpSettings,
    KerasResnetSettings,
    NetworkSettings,
    PlainSettings,
    ResnetSettings,
)
from kdx.methods.bayesian_dark_knowledge import StudentAndSampler
from kdx.models import build_model

IMAGE = (1, 12, 12)

PLAIN_CONVNET = ConvnetSettings(
    name="vgg", family="convnet", layers=["C3@4", "C3@4", "MP2", "C3@6", "AP3", "D0.5"], head="linear", hidden=[7],
    hidden_dropout=0.5, spread=2, pad_to=14, width=1.0,
)  # fmt: skip

SETTINGS: dict[str, NetworkSettings] = {
    "mlp": PlainSettings(name="mlp", family="mlp", hidden=[6], channels=[]),
    "lenet": PlainSettings(name="lenet", family="lenet", hidden=[6], channels=[3]),
    "vgg": PLAIN_CONVNET,
    "nin": PLAIN_CONVNET.model_copy(
        update={"name": "nin", "head": "average", "hidden": [], "spread": None, "pad_to": 1, "hidden_dropout": 0.0}
    ),
    "resnet": ResnetSettings(name="resnet", family="resnet", stem=4, blocks=[2, 1], channels=[2, 3]),
    "densenet": DensenetSettings(
        name="densenet", family="densenet", stem=4, growth=2, bottleneck=2, blocks=[2, 1], pad_to=16
    ),
    "keras-resnet": KerasResnetSettings(
        # The projection of the second stage is strided and has four inputs, with which oneDNN's channels_last crashes.
        name="keras-resnet",
        family="keras-resnet",
        stem=4,
        blocks=[1, 2],
        channels=[4, 6],
    ),
    "kddp": KddpSettings(name="kddp", family="kddp", channels=4, hidden=[5]),
}


def small(family: str, seed: int = 0):
    """The small network of `family`, for images of shape `IMAGE`."""
    return build_model(SETTINGS[family], IMAGE, CLASSES, seed)


@cache
def settings(name: str) -> NetworkSettings:
    return compose_config([f"student={name}"]).student


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def keras_count(network: nn.Module) -> int:
    """Keras counts batch norm's moving mean and variance, and no counter of batches."""
    return parameters(network) + sum(value.numel() for value in network.buffers() if value.dim())


def student_and_sampler() -> nn.Module:
    return StudentAndSampler(perceptron(), perceptron(hidden=7, seed=1), 0.05)


def network(family: str) -> Callable[[], nn.Module]:
    return lambda: small(family)
