"""What a network answers: its logits, and how often they are wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Put `model` into eval mode without gradients, give its device, and restore every module's mode afterwards."""
    # Mode by mode, because a caller may hold some modules (a frozen batch norm) in eval mode on purpose.
    modes = [(module, module.training) for module in model.modules()]
    parameter = next(model.parameters(), None)
    model.eval()
    try:
        with torch.no_grad():
            yield parameter.device if parameter is not None else torch.device("cpu")
    finally:
        for module, training in modes:
            module.training = training


def error_percent(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 1000) -> float:
    """Percentage of `images` (N, C, H, W) whose largest logit is not at `labels` (N,), computed on the model's device.

    Raises ValueError when there are no images, or not one label for each.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: expected at least one, and as many of both")
    with evaluating(model) as device:
        # Counted on the device: reading the count after each batch would wait for the device each time.
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        for batch, expected in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            wrong += (model(batch.to(device)).argmax(dim=1) != expected.to(device)).sum()
    return 100.0 * wrong.item() / len(images)


def logits_of(model: nn.Module, images: Tensor, batch_size: int = 1000) -> Tensor:
    """Logits (N, classes) of `images` (N, C, H, W) in eval mode, without gradient, on the model's device."""
    with evaluating(model) as device:
        return torch.cat([model(batch.to(device)) for batch in images.split(batch_size)])
