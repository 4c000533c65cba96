"""A network's logits, and its classification error."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdx.data.dataset import Split
from kdx.models.layers import eval_mode

# Percent points that rounding to float may add to a difference of errors, about 1e-14, with room; one image among ten
# million weighs a hundred times as much.
ROUNDING = 1e-7


def error_percent(model: nn.Module, split: Split, batch_size: int = 1000) -> float:
    """Percentage of the images of `split`, neither mirrored nor shifted, whose largest logit is not at their label.

    Computed on the model's device. Raises ValueError if there are no images, or not one label for each.
    """
    return 100.0 * count_errors(model, split, batch_size).item() / len(split.images)


def within_tolerance(error: float, before: float, tolerance: float) -> bool:
    """Whether an error (percent) is at most `tolerance` percent points above the one `before`.

    Errors are whole numbers of images, so a tolerance of five images admits five, however their percentages round.
    """
    return error - before <= tolerance + ROUNDING


def count_errors(model: nn.Module, split: Split, batch_size: int = 1000) -> Tensor:
    """How many images of `split`, neither mirrored nor shifted, have their largest logit not at their label: () int64.

    The result stays on the model's device, without synchronising. Raises ValueError as `error_percent` does.
    """
    count = len(split.images)
    if count == 0 or count != len(split.labels):
        raise ValueError(f"{count} images and {len(split.labels)} labels: expected at least one, and as many of both")
    with eval_mode(model) as device:
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        for images, labels in split.batches(batch_size):
            wrong += (model(images.to(device)).argmax(dim=1) != labels.to(device)).sum()
    return wrong


def logits_of(model: nn.Module, split: Split, batch_size: int = 1000) -> Tensor:
    """Logits (N, views, classes) of every view of `split`, in eval mode, without gradient, on the model's device."""
    return torch.stack([logits_of_view(model, split, view, batch_size) for view in range(split.views)], dim=1)


def logits_of_view(
    model: nn.Module,
    split: Split,
    view: int,
    batch_size: int = 1000,
    answered: Callable[[int], object] = lambda samples: None,
) -> Tensor:
    """Logits (N, classes) of the view with number `view` (from 0) of every sample, as `logits_of` computes them.

    `answered` is called after every batch with the number of samples done.
    """
    logits, samples = [], 0
    chosen = torch.arange(view, len(split) * split.views, split.views, device=split.images.device)
    with eval_mode(model) as device:
        for part in chosen.split(batch_size):
            images, _ = split.take(part)
            logits.append(model(images.to(device)))
            samples += len(part)
            answered(samples)
    return torch.cat(logits)
