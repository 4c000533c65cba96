"""The pass of several models on a GPU, by fakes of CUDA tensors.

vmap is asked there what it is not asked of tensors of other devices. The pass back needs a GPU: tests/gpu has it.
"""

from collections.abc import Callable, Iterable

import pytest
import torch
from helpers.miniature import CLASSES, method, perceptron
from helpers.networks import IMAGE, SETTINGS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdx.models import build_model
from kdx.training import step as steps
from kdx.training.state import stacked

MODELS, BATCH = 3, 8
pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no CUDA tensors")


def laid_out(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """As on a GPU, where convolutions are in channels_last."""
    return {
        name: value.detach().contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value.detach()
        for name, value in tensors
    }


def losses(family: str, channels: int, prepare: Callable[[nn.Module], nn.Module]) -> Tensor:
    """The losses (models,) of a batch."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        student = build_model(SETTINGS[family], (channels, *IMAGE[1:]), CLASSES, 0)
        objective = method("kd").objective(student, perceptron(), 32)
        parameters = stacked([laid_out(student.named_parameters())] * MODELS)
        buffers = stacked([laid_out(student.named_buffers())] * MODELS)
        images, labels = torch.empty(BATCH, channels, *IMAGE[1:]), torch.empty(BATCH, dtype=torch.int64)
        numbers = {name: torch.ones(MODELS) for name in steps.hyperparameter_names(objective)}
        loss = steps._loss(prepare(student), objective, None)
        several = torch.func.vmap(loss, in_dims=(0, 0, None, 0, 0))
        batch = steps.Batch(images, labels, torch.empty(BATCH, CLASSES))
        return several(parameters, buffers, batch, {}, numbers)[0]


@pytest.fixture(autouse=True)
def _not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    # A CPU's generator would refuse.
    monkeypatch.setattr("helpers.miniature.randomise", lambda network, seed, scale=0.3: network)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("family", ["resnet", "densenet", "keras-resnet", "kddp"])
def test_every_family_with_batch_norm(family: str, channels: int):
    found = losses(family, channels, steps._stackable)
    assert (found.shape, found.device.type) == ((MODELS,), "cuda")


def test_what_it_is_for():
    """vmap cannot take cuDNN's batch norm as it is; when it can, `_stackable` can go."""
    with pytest.raises(RuntimeError, match="inside of vmap for memory_format"):
        losses("keras-resnet", 3, lambda student: student)


def test_the_tensors_are_the_students_own():
    student = build_model(SETTINGS["kddp"], IMAGE, CLASSES, 0)
    copy = steps._stackable(student)
    assert [id(each) for each in copy.state_dict(keep_vars=True).values()] == [
        id(each) for each in student.state_dict(keep_vars=True).values()
    ]
    # Alone, or one after another, the student stays as it is.
    assert not any(layer._forward_pre_hooks for layer in student.modules())
