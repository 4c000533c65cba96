"""The compiled training step against the eager one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from miniature import CLASSES, SIDE, engine, method, named, no_figures, normal, perceptron, split
from torch import nn

from kdx.config import TrainerSettings
from kdx.device import has_compiler
from kdx.trainer import Training, train


def normalised() -> nn.Sequential:
    return named(
        {
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(SIDE * SIDE, 5, bias=False),
            "bn1": nn.BatchNorm1d(5),
            "fc1_relu": nn.ReLU(),
            "fc2": nn.Linear(5, CLASSES),
        },
        seed=0,
    )


def trained(folder: Path, name: str, build: Callable[[], nn.Module], compiled: bool):
    how, examples = method(name), split(12)
    student = how.prepare(build())
    objective = how.objective(student, perceptron(hidden=9, seed=1), len(examples))
    training = Training(
        title="miniature",
        identity="miniature",
        examples=examples,
        teacher_logits=normal(12, CLASSES, seed=4),
        trainer=TrainerSettings(epochs=3, batch_size=4, lr=2e-3, hold=0.5, patience=None, checkpoint_seconds=1e9),
        seed=0,
        checkpoint=folder / "checkpoint",
    )
    progress = train(student, objective, training, replace(engine(), compile=compiled), no_figures)
    return student, progress.history


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler (g++ or clang++)")
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("st-vbd", perceptron),
        ("st-vbd", normalised),
        # Drawn numbers, watched layers, noise of two kinds.
        ("noisy", perceptron),
        ("noisy-student", perceptron),
        ("kddp", perceptron),
        ("bc", perceptron),
    ],
)
def test_compiled_training_is_eager_training(tmp_path: Path, name: str, build: Callable[[], nn.Module]):
    eager, history = trained(tmp_path, name, build, compiled=False)
    compiled, compiled_history = trained(tmp_path, name, build, compiled=True)
    for (name, one), two in zip(eager.state_dict().items(), compiled.state_dict().values(), strict=True):
        # Nine steps move a weight by up to 0.02; sums are rounded in another order.
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    for one, two in zip(history, compiled_history, strict=True):
        figures = one.keys() - {"seconds"}
        assert {key: two[key] for key in figures} == pytest.approx({key: one[key] for key in figures}, rel=1e-4)
