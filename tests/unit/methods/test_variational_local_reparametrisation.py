"""The variational layers: noise on outputs against the sampling of weights that it stands for."""

from math import inf, sqrt

import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import by_noise, normal, randomise
from torch import Tensor, nn

from kdx.methods.bayesian_compression import GroupConv2d
from kdx.methods.variational import VARIANCE_FLOOR, VariationalConv2d, VariationalLinear

SAMPLES = 20_000
# In standard errors: of some 50 outputs, one in 30,000 seeds would pass it by chance.
LIMIT = 5.0


def variational(plain: nn.Linear | nn.Conv2d, seed: int = 1):
    """The substitute of a layer with random weights, with a variance of its own for every weight."""
    randomise(plain, seed)
    kind = VariationalLinear if isinstance(plain, nn.Linear) else VariationalConv2d
    layer = kind(plain, -2.0)
    with torch.no_grad():
        layer.log_sigma2.add_(normal(*layer.weight.shape, seed=seed + 1))
    return layer


def linear():
    return variational(nn.Linear(6, 4)), normal(3, 6, seed=5)


def strided():
    return variational(nn.Conv2d(2, 3, 3, stride=2, padding=1)), normal(2, 2, 5, 5, seed=5)


def grouped():
    return variational(nn.Conv2d(4, 4, (2, 3), padding=(0, 2), dilation=(1, 2), groups=2)), normal(1, 4, 4, 5, seed=5)


def reflecting():
    # Uneven padding, so that height and width cannot be mixed up.
    plain = nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 2), padding_mode="reflect")
    return variational(plain), normal(2, 2, 4, 5, seed=5)


def replicating():
    return variational(nn.Conv2d(2, 2, 4, padding="same", padding_mode="replicate")), normal(1, 2, 4, 5, seed=5)


def circular():
    plain = nn.Conv2d(4, 2, 3, padding=2, dilation=2, groups=2, padding_mode="circular")
    return variational(plain), normal(1, 4, 4, 5, seed=5)


LAYERS = pytest.mark.parametrize("example", [linear, strided, grouped, reflecting, replicating, circular])


def by_weights(layer, inputs: Tensor) -> Tensor:
    """Outputs (samples, batch, ...) of the plain layer with `SAMPLES` draws of all its weights, one after another."""
    plain, numbers = layer.plain(8.0), torch.Generator().manual_seed(7)

    def output(weight: Tensor) -> Tensor:
        return torch.func.functional_call(plain, {"weight": weight}, (inputs,))

    outputs = []
    with torch.no_grad():
        for _ in range(SAMPLES // 1000):
            noise = torch.randn((1000, *layer.weight.shape), generator=numbers)
            weights = layer.weight + noise * torch.exp(layer.log_sigma2 / 2)
            outputs.append(torch.func.vmap(output)(weights))
    return torch.cat(outputs)


@LAYERS
def test_mean_and_variance_are_those_of_sampled_weights(example):
    layer, inputs = example()
    weights, noise = by_weights(layer, inputs).double(), by_noise(layer, inputs, SAMPLES).double()
    variance = weights.var(dim=0)
    error_of_mean = torch.sqrt((variance + noise.var(dim=0)) / SAMPLES)
    assert ((weights.mean(dim=0) - noise.mean(dim=0)).abs() < LIMIT * error_of_mean).all()
    # Both are normal, whose sample variance has a relative error of sqrt(2 / samples).
    relative = (noise.var(dim=0) / variance - 1).abs()
    assert (relative < LIMIT * sqrt(2 * 2 / SAMPLES)).all()


@LAYERS
def test_the_variance_is_exact(example):
    """Noise of one shifts every output by its standard deviation: the sum of input^2 sigma^2 over each patch."""
    layer, inputs = example()
    layer, inputs = layer.double(), inputs.double()
    mean = layer(inputs)
    shifted = torch.func.functional_call(layer, {"noise": torch.ones_like(mean)}, (inputs,))
    plain = layer.plain(8.0)
    # A linear map is its Jacobian, so its entries are the inputs that meet each weight.
    jacobian = torch.autograd.functional.jacobian(
        lambda weight: torch.func.functional_call(plain, {"weight": weight}, (inputs,)), layer.weight.detach()
    )
    dims = tuple(range(mean.dim(), mean.dim() + layer.weight.dim()))
    variance = (jacobian.square() * layer.log_sigma2.exp()).sum(dim=dims)
    torch.testing.assert_close(shifted - mean, torch.sqrt(variance + VARIANCE_FLOOR), rtol=1e-10, atol=0)


@LAYERS
def test_the_bias_is_certain(example):
    layer, inputs = example()
    layer, inputs = layer.double(), inputs.double()
    assert layer.bias is not None
    noise = torch.ones_like(layer(inputs))
    before = torch.func.functional_call(layer, {"noise": noise}, (inputs,))
    with torch.no_grad():
        layer.bias.add_(100.0)
    after = torch.func.functional_call(layer, {"noise": noise}, (inputs,))
    torch.testing.assert_close(after - before, torch.full_like(after, 100.0), rtol=1e-12, atol=0)
    # Without inputs nothing but the floor under the square root is left.
    silent = torch.func.functional_call(layer, {"noise": noise}, (torch.zeros_like(inputs),)) - layer(0 * inputs)
    torch.testing.assert_close(silent, torch.full_like(silent, sqrt(VARIANCE_FLOOR)), rtol=1e-9, atol=0)
    assert layer.log_sigma2.shape == layer.weight.shape


@LAYERS
def test_gradients_with_noise(example):
    layer, inputs = example()
    layer, inputs = layer.double(), inputs.double()
    parameters = dict(layer.named_parameters())
    noise = normal(*layer(inputs).shape, seed=11, dtype=torch.float64)

    def output(*values: Tensor) -> Tensor:
        names = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, {**names, "noise": noise}, (inputs,))

    assert torch.autograd.gradcheck(output, tuple(parameters.values()))


def test_a_1x1_convolution_is_a_linear_layer():
    """At every position on its own, with the noise of that position."""
    linear = variational(nn.Linear(5, 3))
    convolution = VariationalConv2d(nn.Conv2d(5, 3, 1), 0.0)
    with torch.no_grad():
        convolution.weight.copy_(linear.weight[:, :, None, None])
        convolution.bias.copy_(linear.bias)
        convolution.log_sigma2.copy_(linear.log_sigma2[:, :, None, None])
    images = normal(2, 5, 4, 4, seed=3)
    noise = normal(2, 3, 4, 4, seed=4)
    one = torch.func.functional_call(convolution, {"noise": noise}, (images,))
    pixels, pixel_noise = (tensor.permute(0, 2, 3, 1) for tensor in (images, noise))
    other = torch.func.functional_call(linear, {"noise": pixel_noise}, (pixels,)).permute(0, 3, 1, 2)
    # Sums of five float32 products.
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_noise_is_drawn_for_every_example_and_position():
    layer, inputs = strided()
    assert layer.new_noise(inputs, layer(inputs)).shape == (2, 3, 3, 3)


@pytest.mark.parametrize("padding", [(1, 2), "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "substitute",
    [lambda plain: VariationalConv2d(plain, -30.0), lambda plain: GroupConv2d(plain, -30.0, None)],
    ids=["variational", "grouped"],
)
def test_without_variance_the_layer_is_the_plain_one(substitute, mode, padding):
    """Whatever it pads with, at a variance of zero, without noise, and made plain again: bit for bit."""
    plain = nn.Conv2d(4, 2, 3, padding=padding, dilation=(1, 2), groups=2, padding_mode=mode)
    randomise(plain, 1)
    images = normal(2, 4, 5, 7, seed=5)
    expected = plain(images)
    layer = substitute(plain)
    assert torch.equal(layer(images), expected)
    finished = layer.plain(8.0)
    assert finished.padding_mode == mode
    assert torch.equal(finished(images), expected)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("log_sigma2"):
                parameter.fill_(-inf)
    noise = layer.new_noise(images, expected)
    layer.draw(noise, torch.Generator().manual_seed(1))
    noisy = torch.func.functional_call(layer, {"noise": noise}, (images,))
    # What is left is the floor under the square root.
    left = noise.flatten(1)[:, -expected[0].numel() :].reshape(expected.shape) * sqrt(VARIANCE_FLOOR)
    torch.testing.assert_close(noisy - expected, left, rtol=0, atol=2e-6)


def test_without_noise_the_layer_is_the_plain_one():
    plain = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    layer, inputs = variational(plain), normal(2, 2, 5, 5, seed=5)
    assert layer.weight is plain.weight
    assert torch.equal(layer(inputs), F.conv2d(inputs, plain.weight, plain.bias, stride=2, padding=1))
