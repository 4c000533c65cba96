"""The compiled training step against the eager one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.miniature import (
    CLASSES,
    SIDE,
    backend,
    dataset,
    generator,
    method,
    named,
    no_figures,
    normal,
    perceptron,
    randomise,
    split,
)
from helpers.networks import IMAGE, small
from helpers.trainings import SGD_OPTIONS
from torch import nn

from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Split
from kdx.data.preprocessing import PER_BATCH
from kdx.device.backend import Backend, has_compiler
from kdx.methods.fit import FitSpec, TrainingInputs
from kdx.methods.procedure import FitResult
from kdx.runs.folder import RunFolder
from kdx.sweep.fused_runs import Fit, fit_fused
from kdx.training import stacked
from kdx.training.learner import TrainSpec
from kdx.training.stacked import FusionMode
from kdx.training.trainer import train


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


def trained(
    folder: Path, name: str, build: Callable[[], nn.Module], compiled: bool, examples: Split | None = None, **trainer
):
    hint = {"standardize": True, "decoupled": True} if trainer else {}
    how, examples = method(name, **hint), examples or split(12)
    logits = normal(12 * examples.views, CLASSES, seed=4)
    student = how.prepare(build())
    objective = how.objective(student, perceptron(hidden=9, seed=1), len(examples))
    training = partial(
        TrainSpec,
        title="miniature",
        identity="miniature",
        examples=examples,
        teacher_logits=logits.half() if examples.shift else logits,
        trainer=TrainerSettings(
            epochs=3, batch_size=4, lr=2e-3, hold=0.5, patience=None, checkpoint_seconds=1e9, **trainer
        ),
        seed=0,
        checkpoint=folder / "checkpoint",
    )
    progress = train(training(student, objective, no_figures), replace(backend(), compile=compiled))
    return student, progress.history


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler (g++ or clang++)")
@pytest.mark.parametrize(
    ("name", "build", "options"),
    [
        ("st-vbd", perceptron, {}),
        ("st-vbd", normalised, {}),
        ("st-vbd", normalised, SGD_OPTIONS),
        # Drawn numbers, watched layers, noise of two kinds.
        ("noisy", perceptron, {}),
        ("noisy-student", perceptron, {}),
        ("kddp", perceptron, {}),
        ("bc", perceptron, {}),
    ],
)
def test_compiled_training_is_eager_training(tmp_path: Path, name: str, build: Callable[[], nn.Module], options: dict):
    assert_compiled_is_eager(tmp_path, name, build, **options)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler (g++ or clang++)")
def test_views_are_taken_within_the_compiled_step(tmp_path: Path):
    """From bytes, mirrored and shifted, with logits of their own in half precision."""
    pixels = torch.randint(256, (12, 1, SIDE, SIDE), generator=generator(0), dtype=torch.uint8)
    fitted = PER_BATCH["per-pixel-mean"].fitted(pixels)
    examples = Split(pixels, split(12).labels, fitted, "random", 2)
    assert_compiled_is_eager(tmp_path, "kd", perceptron, examples)


def assert_compiled_is_eager(
    folder: Path, name: str, build: Callable[[], nn.Module], examples: Split | None = None, **options
) -> None:
    eager, history = trained(folder, name, build, compiled=False, examples=examples, **options)
    compiled, compiled_history = trained(folder, name, build, compiled=True, examples=examples, **options)
    for (name, one), two in zip(eager.state_dict().items(), compiled.state_dict().values(), strict=True):
        # Nine steps move a weight by up to 0.02; sums are rounded in another order.
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    for one, two in zip(history, compiled_history, strict=True):
        figures = one.keys() - {"seconds"}
        assert {key: two[key] for key in figures} == pytest.approx({key: one[key] for key in figures}, rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler (g++ or clang++)")
@pytest.mark.parametrize(
    ("way", "build"), [("stacked", normalised), ("loop", normalised), ("auto", lambda: small("lenet"))]
)
def test_several_models_in_a_compiled_step(
    tmp_path: Path, way: FusionMode, build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
):
    """Numbers, noise, dropout rates and orders of their own; batch norm, whose statistics a step changes."""
    monkeypatch.setattr(stacked, "LEAST_STEPS", 0)
    shape = IMAGE if way == "auto" else (1, SIDE, SIDE)

    def together(folder: Path, backend: Backend, way: FusionMode) -> list[list[dict]]:
        fits = []
        for seed, lr in ((0, 1e-3), (1, 1e-3), (1, 2e-3)):
            how = method("kd-dropout", dropout=0.1 + seed / 2)
            trainer = TrainerSettings(epochs=2, batch_size=4, lr=lr, hold=0.5, patience=None, checkpoint_seconds=1e9)
            spec = FitSpec("miniature", trainer, seed, RunFolder(folder / f"{seed}-{lr}"))
            fits.append(Fit(randomise(build(), seed), how, spec))
        examples = Split(normal(12, *shape, seed=1), split(12).labels)
        inputs = TrainingInputs(dataset(examples), teacher_logits=normal(12, CLASSES, seed=4))
        found = [each for each in fit_fused(fits, inputs, backend, way) if isinstance(each, FitResult)]
        return [[{key: row[key] for key in ("loss", "hint")} for row in each.progress.history] for each in found]

    eager = together(tmp_path / "eager", backend(), "loop")
    compiled = together(tmp_path / "compiled", replace(backend(), compile=True), way)
    assert len(eager) == len(compiled) == 3
    for one, two in zip(eager, compiled, strict=True):
        assert two == [pytest.approx(row, rel=1e-3) for row in one]
