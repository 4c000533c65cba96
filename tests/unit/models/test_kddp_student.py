"""SN_n, the student of KDDP: what it computes, and with which weights it begins."""

import pytest
import torch
from torch import nn

from kdx.config.compose import compose_config
from kdx.config.networks import NetworkSettings
from kdx.models import build_model

COLOUR = (3, 32, 32)


def student(name: str) -> NetworkSettings:
    return compose_config([f"student={name}"]).student


def test_a_student_of_kddp_is_a_function_of_its_own_words():
    """The operations of KDDP's SN_n, in float64, each written out: Keras' batch norm, and how borders are treated."""
    network = build_model(student("kddp-sn-50"), COLOUR, 10, seed=1).double().eval()
    generator = torch.Generator().manual_seed(0)
    # Moving statistics and biases that are not those of the beginning, in which a wrong order would not be seen.
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn + 0.5 if "var" in name or "bn" in name else drawn - 0.5)
    tensors = network.state_dict()

    def windows(x: torch.Tensor, size: int, stride: int) -> torch.Tensor:
        """(batch, channels, rows, columns, size, size)."""
        return x.unfold(2, size, stride).unfold(3, size, stride)

    def convolved(x: torch.Tensor, name: str, stride: int = 1, padding: int = 0) -> torch.Tensor:
        size = tensors[f"{name}.weight"].shape[-1]
        padded = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * padding, x.shape[3] + 2 * padding)
        padded[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]] = x
        sums = torch.einsum("bcijkl,ockl->boij", windows(padded, size, stride), tensors[f"{name}.weight"])
        return sums + tensors[f"{name}.bias"][:, None, None]

    def normalised(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance, scale, shift = (
            tensors[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return scale * (x - mean) / (variance + 1e-3).sqrt() + shift

    def positive(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.0)

    images = torch.rand(2, *COLOUR, generator=generator, dtype=torch.float64)
    x = positive(normalised(convolved(images, "conv1", stride=2, padding=3), "bn1"))
    x = windows(x, 3, 2).amax(dim=(4, 5))
    assert x.shape[2:] == (7, 7)
    inner = positive(normalised(convolved(x, "block.branch.conv1"), "block.branch.bn1"))
    inner = positive(normalised(convolved(inner, "block.branch.conv2", padding=1), "block.branch.bn2"))
    x = positive(x + normalised(convolved(inner, "block.branch.conv3"), "block.branch.bn3"))
    x = windows(x, 2, 2).mean(dim=(4, 5)).flatten(1)
    hidden = positive(x @ tensors["fc1.weight"].T + tensors["fc1.bias"])
    torch.testing.assert_close(network(images), hidden @ tensors["fc2.weight"].T + tensors["fc2.bias"])
    # Keras' 0.99 of the moving statistics is torch's 0.01.
    assert {layer.momentum for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.01}


def test_students_of_all_widths_begin_with_the_same_weights():
    """KDDP's students start from the same weights; other shapes are drawn separately, within Glorot's bounds."""
    narrow, wide = (build_model(student(name), COLOUR, 10, seed=3) for name in ("kddp-sn-50", "kddp-sn-100"))
    others = dict(wide.named_parameters())
    differ = [name for name, value in narrow.named_parameters() if not torch.equal(value, others[name])]
    assert differ == ["fc1.weight", "fc1.bias", "fc2.weight"]
    for inputs, outputs, name in ((576, 50, "fc1"), (50, 10, "fc2")):
        weight, bound = narrow.get_parameter(f"{name}.weight").detach(), (6 / (inputs + outputs)) ** 0.5
        assert weight.abs().max() <= bound
        # The deviation of a uniform distribution.
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not narrow.get_parameter(f"{name}.bias").any()
