"""Small trainings for the tests of the loop: examples that are told apart, settings, a term."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Split
from kdx.training.checkpoint import Progress
from kdx.training.learner import TrainSpec
from kdx.training.objective import LossInputs, Objective
from kdx.training.optimizer import BETA1, BETA2
from kdx.training.step import hyperparameter_names

LR = 1e-2

# The options of a trainer in two combinations, which have all that a step can have.
ADAM_OPTIONS: dict[str, Any] = {"weight_decay": 0.1, "label_smoothing": 0.1, "average": 0.8, "schedule": "one-cycle"}
SGD_OPTIONS: dict[str, Any] = ADAM_OPTIONS | {"optimizer": "sgd", "momentum": 0.8, "peak": 0.5}


def training(
    folder: Path, examples: Split, logits: Tensor | None = None, seed: int = 0, **settings
) -> partial[TrainSpec]:
    values = {
        "epochs": 3,
        "batch_size": 4,
        "lr": LR,
        "hold": 1.0,
        "patience": None,
        "checkpoint_seconds": 1e9,
    } | settings
    return partial(
        TrainSpec,
        title="miniature",
        identity="miniature",
        examples=examples,
        teacher_logits=logits,
        trainer=TrainerSettings(**values),
        seed=seed,
        checkpoint=folder / "checkpoint",
    )


def numbered(count: int) -> Split:
    """Examples whose label is their place, and so is every pixel."""
    labels = torch.arange(count)
    return Split(labels.float().reshape(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous(), labels)


def two(step: LossInputs) -> Tensor:
    return step.logits.square().mean()


def row(
    objective: Objective, steps: int = 1, lr: float = 1e-3, time: float = 100.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The numbers of Adam's step number `steps`, counted from one, at `time` in epochs."""
    optimiser = {"lr": lr, "steps": steps, "bias1": 1 - BETA1**steps, "bias2": 1 - BETA2**steps}
    values = [
        optimiser[name] if name in optimiser else objective.hyperparameters[name](time)
        for name in hyperparameter_names(objective)
    ]
    return torch.tensor(values, dtype=dtype)


def comparable(progress: Progress) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in progress.history]
