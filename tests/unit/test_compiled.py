"""The compiled training step against the eager one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from miniature import CLASSES, engine, method, normal, perceptron, split

from kdx.config import TrainerSettings
from kdx.device import has_compiler
from kdx.trainer import Training, train


def trained(folder: Path, compiled: bool):
    how, examples = method("st-vbd"), split(12)
    student = how.prepare(perceptron())
    objective = how.objective(student, perceptron(hidden=9, seed=1), len(examples))
    training = Training(
        title="miniature",
        identity="miniature",
        examples=examples,
        teacher_logits=normal(12, CLASSES, seed=4),
        trainer=TrainerSettings(epochs=3, batch_size=4, lr=2e-3, hold=0.5, checkpoint_seconds=1e9),
        seed=0,
        checkpoint=folder / "checkpoint",
    )
    progress = train(student, objective, training, replace(engine(), compile=compiled), dict)
    return student, progress.history


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler (g++ or clang++)")
def test_compiled_training_is_eager_training(tmp_path: Path):
    eager, history = trained(tmp_path, compiled=False)
    compiled, compiled_history = trained(tmp_path, compiled=True)
    for (name, one), two in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        # Nine steps move a weight by up to 0.02; sums are rounded in another order.
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    for one, two in zip(history, compiled_history, strict=True):
        figures = one.keys() - {"seconds"}
        assert {key: two[key] for key in figures} == pytest.approx({key: one[key] for key in figures}, rel=1e-4)
