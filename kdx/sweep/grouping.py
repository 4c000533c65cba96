"""Which runs can be trained together as one program, and how many at once."""

import json
from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import TypeVar

import psutil
import torch
from torch import Tensor, nn

from kdx.config.schema import Config
from kdx.device.cpu import give_back_freed_memory
from kdx.methods import build
from kdx.methods.procedure import SingleFit
from kdx.models.layers import eval_mode

T = TypeVar("T")

NUMBERS_OF_TRAINER = ("lr", "schedule", "hold", "peak", "momentum")
OPTIONS_OF_TRAINER = ("weight_decay", "label_smoothing", "average")
# Per number in a parameter: itself, two moments, a gradient, Adam's temporaries, and those of a variational layer.
COPIES_OF_PARAMETERS = 10
# Per number in a layer's output: what is kept for the backward pass, gradients, noise and variances.
COPIES_OF_OUTPUTS = 8
# The fraction of free memory that models may use.
USABLE_FRACTION = 0.7


def fusion_key(config: Config) -> str | None:
    """A key that is equal for runs which can be trained together; None for a method that needs more than one fit.

    It covers everything but the seed and the numbers that a step reads: those of the trainer and `Modifier.batchable`.
    """
    method, procedure = build(config.method)
    if not isinstance(procedure, SingleFit):
        return None
    content = config.model_dump(
        mode="json",
        exclude={
            **dict.fromkeys(("seed", "force", "sweep", "method"), True),
            "trainer": dict.fromkeys((*NUMBERS_OF_TRAINER, *OPTIONS_OF_TRAINER), True),
        },
    )
    # A step reads these numbers only if the option is on, so whether it is on must be the same.
    options = {name: bool(getattr(config.trainer, name)) for name in OPTIONS_OF_TRAINER}
    parts = [
        (type(part).__name__, part.model_dump(mode="json", exclude=set(part.batchable))) for part in method.modifiers
    ]
    return json.dumps([content, options, parts], sort_keys=True)


def groups(configs: Sequence[Config]) -> list[list[int]]:
    """The indices of the runs that can be trained together, as groups in the order of their first members."""
    found: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        found.setdefault(fusion_key(config) or f"alone {number}", []).append(number)
    return list(found.values())


def split_evenly(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """The items divided into as few parts as possible, of nearly equal size, with at most `most` each."""
    count = ceil(len(items) / most)
    bounds = [len(items) * index // count for index in range(count + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]


def models_that_fit(student: nn.Module, images: Tensor) -> int:
    """How many prepared students can be trained together on batches like `images`, at least one.

    Estimated from the free memory of their device.
    """
    return max(1, int(USABLE_FRACTION * _free_bytes(images.device) / bytes_per_model(student, images)))


def bytes_per_model(student: nn.Module, images: Tensor) -> int:
    """The estimated bytes for training one model on batches like `images`."""
    given = 0

    def count(_layer: nn.Module, _inputs: object, outputs: Tensor) -> None:
        nonlocal given
        given += outputs.nbytes

    leaves = [layer for layer in student.modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in leaves]
    try:
        with eval_mode(student):
            student(images)
    finally:
        for hook in hooks:
            hook.remove()
    own = sum(parameter.nbytes for parameter in student.parameters())
    return COPIES_OF_PARAMETERS * own + COPIES_OF_OUTPUTS * given + images.nbytes


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    give_back_freed_memory()
    return psutil.virtual_memory().available
