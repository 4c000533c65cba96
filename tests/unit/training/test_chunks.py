"""A training of recorded steps is that of the same steps one by one, bit for bit; played from a tape on CPUs."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.miniature import (
    CLASSES,
    backend,
    dataset,
    method,
    method_and_procedure,
    no_figures,
    normal,
    perceptron,
    split,
)
from helpers.networks import IMAGE, network, student_and_sampler
from helpers.tape import Tape
from helpers.trainings import ADAM_OPTIONS, SGD_OPTIONS, comparable
from torch import nn

from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Split
from kdx.device.cuda_graphs import Run
from kdx.device.execution import Execution
from kdx.errors import Diverged, Interrupted
from kdx.methods.fit import FitSpec, TrainingInputs
from kdx.methods.procedure import FitResult
from kdx.runs.folder import RunFolder
from kdx.storage.tensors import load_tensors
from kdx.sweep.fused_runs import Fit, fit_fused
from kdx.training import chunks as chunks_module
from kdx.training.checkpoint import Progress
from kdx.training.chunks import TRIAL_PLAYS, GraphedSteps
from kdx.training.learner import TrainSpec
from kdx.training.objective import Objective, Term
from kdx.training.stacked import FusionMode
from kdx.training.trainer import train

# 29 examples in batches of four: chunks of two or three steps leave some of the seven over.
EXAMPLES, STEPS_PER_EPOCH, EPOCHS = 29, 7, 2


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Steps are recorded in chunks of three, each training on a tape of its own, as listed."""
    made: list[Tape] = []

    def recorder(self: Execution) -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(Execution, "recorder", recorder)
    monkeypatch.setattr(chunks_module, "CHUNK_SECONDS", 1e9)
    monkeypatch.setattr(chunks_module, "MOST_STEPS", 3)
    return made


def trained(
    folder: Path,
    name: str = "st-vbd",
    build: Callable[[], nn.Module] = perceptron,
    played: Callable[[int], None] | None = None,
    **trainer,
) -> tuple[nn.Module, Progress, dict]:
    """Train as a new process would; the student, the history, and what the last checkpoint holds."""
    how, _ = method_and_procedure(name)
    shape = IMAGE if build.__name__ == "<lambda>" else (1, 6, 6)
    examples = Split(normal(EXAMPLES, *shape, seed=1), split(EXAMPLES).labels)
    student = how.prepare(build())
    objective = how.objective(student, perceptron(hidden=9, seed=1), EXAMPLES)
    values = {"epochs": EPOCHS, "batch_size": 4, "lr": 1e-2, "hold": 0.5, "patience": None, "checkpoint_seconds": 1e9}
    path = folder / "checkpoint"
    logits = normal(EXAMPLES, CLASSES, seed=4)
    given = partial(
        TrainSpec,
        title="miniature",
        identity="it",
        examples=examples,
        teacher_logits=logits,
        trainer=TrainerSettings(**(values | trainer)),
        seed=0,
        checkpoint=path,
    )
    progress = train(given(student, objective, no_figures), backend())
    return student, progress, load_tensors(path)[0]


def assert_same(one: tuple[nn.Module, Progress, dict], two: tuple[nn.Module, Progress, dict]) -> None:
    assert one[1].steps == two[1].steps == EPOCHS * STEPS_PER_EPOCH
    assert comparable(one[1]) == comparable(two[1])
    assert one[2].keys() == two[2].keys()
    for name, value in one[2].items():
        # Parameters, buffers, student_and_sampler moments, the sums, and where the noise's generator stands.
        assert torch.equal(value, two[2][name]), name


CASES = [
    ("vanilla", perceptron),
    ("kd", perceptron),
    ("st-vbd", perceptron),
    ("st-svd", network("lenet")),
    ("kd-dropout", perceptron),
    ("bc", perceptron),
    ("sgld", perceptron),
    ("bdk", student_and_sampler),
    ("noisy", perceptron),
    ("noisy-student", perceptron),
    # Batch norm, whose statistics a step changes; dropout that belongs to the network.
    ("kd", network("keras-resnet")),
    ("kd", network("densenet")),
    ("kd", network("vgg")),
]


@pytest.mark.parametrize(("name", "build"), CASES)
def test_recorded_steps_are_the_steps_one_by_one(
    tmp_path: Path, name: str, build: Callable[[], nn.Module], request: pytest.FixtureRequest
):
    one_by_one = trained(tmp_path / "eager", name, build)
    tapes = request.getfixturevalue("tapes")
    in_chunks = trained(tmp_path / "captured", name, build)
    (tape,) = tapes
    # Two chunks and a single step in every epoch.
    assert (tape.plays, tape.closed) == (TRIAL_PLAYS + 3 * EPOCHS, 1)
    assert_same(one_by_one, in_chunks)


@pytest.mark.parametrize("options", [ADAM_OPTIONS, SGD_OPTIONS], ids=["adam", "sgd"])
@pytest.mark.parametrize(("name", "build"), [("st-vbd", perceptron), ("kd", network("keras-resnet"))])
def test_with_every_option_of_the_trainer(
    tmp_path: Path, name: str, build: Callable[[], nn.Module], options: dict, request: pytest.FixtureRequest
):
    one_by_one = trained(tmp_path / "eager", name, build, **options)
    request.getfixturevalue("tapes")
    in_chunks = trained(tmp_path / "captured", name, build, **options)
    assert_same(one_by_one, in_chunks)
    assert any(key.startswith("average/") for key in in_chunks[2])


def stop_at(play: int) -> Callable[[int], None]:
    return lambda number: signal.raise_signal(signal.SIGINT) if number == TRIAL_PLAYS + play else None


# While a recorded step is tried; after the first chunk, between two, at the epoch's end, and in the second epoch.
@pytest.mark.parametrize(("play", "steps"), [(0, 3), (1, 3), (2, 6), (3, 7), (4, 10)])
def test_a_stop_between_chunks_and_the_rest_one_by_one(
    tmp_path: Path, play: int, steps: int, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
):
    whole = trained(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(Execution, "recorder", lambda self: Tape(stop_at(play)))
        with pytest.raises(Interrupted):
            trained(tmp_path / "stopped")
    assert load_tensors(tmp_path / "stopped" / "checkpoint")[1]["progress"]["steps"] == steps
    with monkeypatch.context() as patched:
        patched.setattr(Execution, "recorder", lambda self: None)
        assert_same(trained(tmp_path / "stopped"), whole)


@pytest.mark.parametrize("last", [1, 2, 4, 5, 6, 8])
def test_a_stop_at_any_step_and_the_rest_in_chunks(tmp_path: Path, last: int, request: pytest.FixtureRequest):
    """As a run that began on a CPU goes on, or one that was captured in chunks of another size."""
    whole = trained(tmp_path / "whole")
    count = iter(range(1, 10**6))

    class Stopping(nn.Flatten):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            # The first pass learns the shapes of the noise.
            if next(count) == last + 1:
                signal.raise_signal(signal.SIGINT)
            return super().forward(input)

    def stopping() -> nn.Module:
        student = perceptron()
        student.flatten = Stopping()
        return student

    with pytest.raises(Interrupted):
        trained(tmp_path / "stopped", build=stopping)
    assert load_tensors(tmp_path / "stopped" / "checkpoint")[1]["progress"]["steps"] == last
    tapes = request.getfixturevalue("tapes")
    assert_same(trained(tmp_path / "stopped"), whole)
    # Whole chunks from there on, whatever is left one by one.
    epochs, done = divmod(last, STEPS_PER_EPOCH)
    left = STEPS_PER_EPOCH - done
    assert [tape.plays for tape in tapes] == [TRIAL_PLAYS + left // 3 + left % 3 + 3 * (EPOCHS - 1 - epochs)]


def test_checkpoints_between_chunks_leave_the_result_alone(tmp_path: Path, tapes: list[Tape]):
    assert_same(trained(tmp_path / "often", checkpoint_seconds=0.0), trained(tmp_path / "never"))


def test_a_loss_that_breaks_within_a_chunk_is_named_with_its_step(tmp_path: Path, tapes: list[Tape]):
    """The look comes after the chunk, as on a GPU after the epoch; the weights have stood still since that step."""
    objective = Objective(
        {"fine": Term(lambda step: (step.hyperparameters["w"] * step.logits.square()).mean())}, {"w": broken}
    )
    settings = TrainerSettings(epochs=2, batch_size=4, lr=1e-2, hold=1, patience=None, checkpoint_seconds=1e9)
    student = perceptron()
    given = partial(
        TrainSpec,
        title="miniature",
        identity="it",
        examples=split(EXAMPLES),
        teacher_logits=None,
        trainer=settings,
        seed=0,
        checkpoint=tmp_path / "checkpoint",
    )
    message = r"^miniature: fine is no longer finite in epoch 1, step 5;"
    with pytest.raises(Diverged, match=message):
        train(given(student, objective, no_figures), backend())
    assert all(value.isfinite().all() for value in student.parameters())
    assert [tape.closed for tape in tapes] == [1]


def broken(epoch: float) -> float:
    return float("inf") if epoch >= 4 / STEPS_PER_EPOCH - 1e-9 else 1.0


@pytest.mark.parametrize("way", ["stacked", "loop"])
def test_several_models(tmp_path: Path, way: FusionMode, request: pytest.FixtureRequest):
    """Orders, noise, dropout rates and learning rates of their own; one ends before the others."""

    def together(folder: Path) -> Sequence[FitResult | Diverged]:
        fits = []
        for seed, lr, patience in ((0, 1e-3, None), (1, 1e-3, None), (1, 0.3, 1)):
            how = method("kd-dropout", dropout=0.1 + seed / 2)
            trainer = TrainerSettings(
                epochs=4, batch_size=4, lr=lr, hold=0.5, patience=patience, checkpoint_seconds=1e9
            )
            fits.append(
                Fit(perceptron(seed=seed), how, FitSpec("it", trainer, seed, RunFolder(folder / f"{seed}-{lr}")))
            )
        data = replace(dataset(split(EXAMPLES)), validation=split(EXAMPLES))
        return fit_fused(fits, TrainingInputs(data, None, normal(EXAMPLES, CLASSES, seed=4)), backend(), way)

    eager = together(tmp_path / "eager")
    tapes = request.getfixturevalue("tapes")
    found = together(tmp_path / "captured")
    assert len(tapes) == 1
    for one, two in zip(eager, found, strict=True):
        assert isinstance(one, FitResult)
        assert isinstance(two, FitResult)
        assert comparable(one.progress) == comparable(two.progress)
        torch.testing.assert_close(two.network.state_dict(), one.network.state_dict(), rtol=0, atol=0)


def test_the_faster_way_is_measured_with_recordings(tmp_path: Path, tapes: list[Tape], monkeypatch):
    monkeypatch.setattr("kdx.training.stacked.LEAST_STEPS", 1)
    trainer = TrainerSettings(epochs=1, batch_size=4, lr=1e-3, hold=1, patience=None, checkpoint_seconds=1e9)
    fits = [
        Fit(perceptron(), method("vanilla"), FitSpec("it", trainer, 0, RunFolder(tmp_path / str(index))))
        for index in range(2)
    ]
    fit_fused(fits, TrainingInputs(dataset(split(EXAMPLES))), backend(), "auto")
    # Both ways were played four times and forgotten; then came the training.
    assert [(tape.plays, tape.closed) for tape in tapes] == [(4, 1), (4, 1), (TRIAL_PLAYS + 3, 1)]


@pytest.mark.parametrize(("seconds", "size"), [(1e9, 5), (0.0, 1)])
def test_chunks_are_as_long_as_the_steps_are_short(monkeypatch: pytest.MonkeyPatch, seconds: float, size: int):
    """Never longer than the epoch; the steps that are tried leave no trace."""
    monkeypatch.setattr(chunks_module, "CHUNK_SECONDS", seconds)
    state, seen = torch.zeros(2), []

    def step(chosen: torch.Tensor, row: torch.Tensor) -> None:
        seen.append(chosen.tolist())
        state.add_(chosen + row)

    chunks = GraphedSteps(step, [state], [], 2, Tape())
    order, rows = torch.arange(10), torch.arange(5.0).reshape(5, 1)
    taken, index = [], 0
    while index < 5:
        taken.append(chunks(order, rows, index))
        index += taken[-1]
    assert taken == [size] * (5 // size)
    assert state.tolist() == [20 + 10, 25 + 10]
    # Three times tried, then recorded by itself and in a chunk, where there is one; never called again.
    chunk = [[2 * number, 2 * number + 1] for number in range(size)]
    assert seen == [[0, 1]] * 4 + (chunk if size > 1 else [])


def test_a_chunk_is_as_long_as_the_recorded_step_takes(monkeypatch: pytest.MonkeyPatch):
    """Not the step that Python launches, which takes longer, nor the first play, which comes late."""
    now = [0.0]

    class Slow(Tape):
        def capture(self, run: Run, generators: Sequence[torch.Generator]) -> Run:
            play, first = super().capture(run, generators), [True]

            def timed() -> None:
                now[0] += 3.0 if first.pop() else 0.125
                first.append(False)
                play()

            return timed

    def step(chosen: torch.Tensor, row: torch.Tensor) -> None:
        now[0] += 2.0

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(chunks_module, "CHUNK_SECONDS", 0.5)
    assert GraphedSteps(step, [], [], 2, Slow())(torch.arange(20), torch.zeros(10, 1), 0) == 4


def test_the_examples_of_every_step_lie_alike(monkeypatch: pytest.MonkeyPatch):
    """Of several models in orders of their own too: a step that was compiled when it was tried checks nothing later."""
    monkeypatch.setattr(chunks_module, "CHUNK_SECONDS", 1e9)
    monkeypatch.setattr(chunks_module, "MOST_STEPS", 3)
    seen: list[tuple[list[list[int]], tuple[int, ...]]] = []
    total = torch.zeros(2, 4, dtype=torch.int64)

    def step(chosen: torch.Tensor, row: torch.Tensor) -> None:
        seen.append((chosen.tolist(), chosen.stride()))
        total.add_(chosen)

    chunks = GraphedSteps(step, [total], [], 4, Tape())
    order, rows = torch.arange(40).reshape(2, 20), torch.zeros(5, 2, 1)
    index = 0
    while index < 5:
        index += chunks(order, rows, index)
    # Tried three times, then recorded by itself, and in a chunk of three.
    assert [examples[1][0] for examples, _ in seen] == [20] * 3 + [20] + [20, 24, 28]
    assert {stride for _, stride in seen} == {(4, 1)}
    assert torch.equal(total, order.unflatten(1, (5, 4)).sum(dim=1))
