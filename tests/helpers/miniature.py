"""What the tests of the mathematics share: an engine, methods from their YAML, networks and data that fit in a line."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdx.config.compose import compose_config
from kdx.data.dataset import Data, Split
from kdx.device.backend import Backend, prepare_device
from kdx.methods import build
from kdx.methods.method import Method
from kdx.methods.procedure import Procedure
from kdx.training.learner import PendingMetrics
from kdx.training.objective import LossInputs, Objective

CLASSES = 4
SIDE = 6


@cache
def backend() -> Backend:
    """One CPU thread, float32, not compiled, nothing decided by the clock."""
    words = ["device=cpu", "device.threads=1", "device.gemm=default", "device.compile=false"]
    return prepare_device(compose_config(words).device)


def method(name: str, **settings: Any) -> Method:
    """The method of `conf/method`, with other values for some of its settings."""
    return method_and_procedure(name, **settings)[0]


def method_and_procedure(name: str, **settings: Any) -> tuple[Method, Procedure]:
    """The same with the procedure by which it is fitted."""
    return build(_settings(name) | settings)


@cache
def _settings(name: str) -> Mapping[str, Any]:
    return compose_config([f"method={name}"]).method


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def randomise(network: nn.Module, seed: int, scale: float = 0.3) -> nn.Module:
    """The network with every parameter drawn from N(0, scale^2), in place."""
    numbers = generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, scale, generator=numbers)
    return network


def perceptron(hidden: int = 5, seed: int = 0) -> nn.Sequential:
    """36-hidden-4."""
    layers = {
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(SIDE * SIDE, hidden),
        "fc1_relu": nn.ReLU(),
        "fc2": nn.Linear(hidden, CLASSES),
    }
    return named(layers, seed)


def convolutional(seed: int = 0) -> nn.Sequential:
    """A grouped and strided convolution without bias, pooling, a second convolution, a linear layer: 2x6x6 images."""
    layers = {
        "conv1": nn.Conv2d(2, 4, 3, stride=1, padding=2, dilation=2, groups=2, bias=False),
        "conv1_relu": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(4, 3, 2, stride=2, padding=1),
        "conv2_relu": nn.ReLU(),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(3 * 2 * 2, CLASSES),
    }
    return named(layers, seed)


def named(layers: Mapping[str, nn.Module], seed: int) -> nn.Sequential:
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    randomise(network, seed)
    return network


def split(count: int, seed: int = 0, channels: int = 1) -> Split:
    images = normal(count, channels, SIDE, SIDE, seed=seed)
    return Split(images, torch.randint(CLASSES, (count,), generator=generator(seed + 1)))


def dataset(train: Split, fingerprint: str = "pixels") -> Data:
    return Data("miniature", train, None, train, CLASSES, fingerprint)


def step_of(student: nn.Module, objective: Objective, examples: Split, logits: Tensor, time: float = 0.0) -> LossInputs:
    """What the terms of `objective` see of a student that gave `logits`, at `time` in epochs."""
    return LossInputs(
        logits=logits,
        labels=examples.labels,
        teacher_logits=normal(len(examples), CLASSES, seed=99).to(logits),
        parameters=dict(student.named_parameters()),
        hyperparameters={
            name: torch.tensor(number(time)).to(logits) for name, number in objective.hyperparameters.items()
        },
    )


def no_figures(_epoch: int) -> PendingMetrics:
    """What `train` is given where nobody evaluates."""
    return dict


def double(value) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def logits(seed: int, rows: int = 7) -> Tensor:
    return normal(rows, CLASSES, seed=seed, dtype=torch.float64)


BOTH_WAYS = pytest.mark.parametrize("eager", [True, False])


def by_noise(layer: nn.Module, inputs: Tensor, samples: int) -> Tensor:
    """Outputs (samples, batch, ...) of the layer with noise that it draws itself, a thousand at a time."""
    numbers, outputs = generator(8), []
    shape = layer.new_noise(inputs, layer(inputs)).shape
    with torch.no_grad():
        for _ in range(samples // 1000):
            noise = torch.empty(1000, *shape)
            layer.draw(noise, numbers)
            outputs.append(torch.func.vmap(lambda one: functional_call(layer, {"noise": one}, (inputs,)))(noise))
    return torch.cat(outputs)
