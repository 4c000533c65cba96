"""A training that is stopped and continued is the training that was never stopped, bit for bit."""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.miniature import CLASSES, backend, method, no_figures, normal, perceptron, split
from helpers.networks import IMAGE, small
from helpers.trainings import ADAM_OPTIONS, SGD_OPTIONS, comparable
from safetensors import safe_open
from torch import Tensor, nn

from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Split
from kdx.errors import Interrupted
from kdx.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from kdx.training.learner import PendingMetrics, TrainSpec
from kdx.training.objective import LossInputs, Objective, Term
from kdx.training.trainer import train

EPOCHS, STEPS_PER_EPOCH = 4, 3


def training(folder: Path, identity: str = "this one", checkpoint_seconds: float = 1e9) -> partial[TrainSpec]:
    trainer = TrainerSettings(
        epochs=EPOCHS, batch_size=4, lr=1e-2, hold=0.5, patience=None, checkpoint_seconds=checkpoint_seconds
    )
    path = folder / "checkpoint.safetensors"
    return partial(
        TrainSpec,
        title="miniature",
        identity=identity,
        examples=split(13),
        teacher_logits=normal(13, CLASSES, seed=4),
        trainer=trainer,
        seed=0,
        checkpoint=path,
    )


def student_and_objective() -> tuple[nn.Module, Objective]:
    """As a new process would make them: variational layers, a warm-up, every term."""
    how = method("st-vbd", warmup_start=1.0, warmup_end=3.0)
    student = how.prepare(perceptron())
    return student, how.objective(student, perceptron(hidden=7, seed=1), 13)


def counting(objective: Objective, act: Callable[[int], None]) -> Objective:
    """The objective with a term of zero that calls `act` with the number of the step, beginning with one."""
    steps = 0

    def value(step: LossInputs) -> Tensor:
        nonlocal steps
        steps += 1
        act(steps)
        return step.logits.sum() * 0

    return replace(objective, terms={**objective.terms, "count": Term(value)})


def run(given: partial[TrainSpec], act: Callable[[int], None] = lambda steps: None) -> tuple[nn.Module, Progress]:
    student, objective = student_and_objective()
    return student, train(given(student, counting(objective, act), no_figures), backend())


def stop_at(last: int) -> Callable[[int], None]:
    return lambda steps: signal.raise_signal(signal.SIGINT) if steps == last else None


def assert_same(one: tuple[nn.Module, Progress], two: tuple[nn.Module, Progress]) -> None:
    for (name, first), second in zip(one[0].state_dict().items(), two[0].state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    assert comparable(one[1]) == comparable(two[1])
    assert one[1].steps == two[1].steps == EPOCHS * STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Progress]:
    return run(training(tmp_path_factory.mktemp("uninterrupted")))


# In the middle of an epoch, at the last step of one, at the first, at the very last.
@pytest.mark.parametrize("last", [5, 6, 7, EPOCHS * STEPS_PER_EPOCH])
def test_stopped_and_continued_is_uninterrupted(tmp_path: Path, uninterrupted, last: int, caplog):
    given = training(tmp_path)
    with pytest.raises(Interrupted, match="miniature: stopped in epoch"):
        run(given, stop_at(last))
    with safe_open(given.keywords["checkpoint"], "pt") as file:
        assert f'"steps": {last}' in file.metadata()["kdx"].replace("\\", "")
    steps = []
    with caplog.at_level(logging.INFO, "kdx.training.trainer"):
        continued = run(given, steps.append)
    assert f"continued at step {last}" in caplog.text
    assert len(steps) == EPOCHS * STEPS_PER_EPOCH - last
    assert_same(continued, uninterrupted)


# Of the running average, and of the momentum, which is all that SGD has.
@pytest.mark.parametrize("options", [ADAM_OPTIONS, SGD_OPTIONS | {"patience": 4}], ids=["adam", "sgd"])
@pytest.mark.parametrize("last", [5, 6, EPOCHS * STEPS_PER_EPOCH])
def test_every_option_of_the_trainer_survives_a_stop(tmp_path: Path, options: dict, last: int):
    def run_with(folder: str, act: Callable[[int], None] = lambda steps: None) -> tuple[nn.Module, Progress]:
        given = training(tmp_path / folder)
        given = partial(given, trainer=given.keywords["trainer"].model_copy(update=options))
        student, objective = student_and_objective()

        def look(_: int) -> PendingMetrics:
            # What is looked at is the average.
            seen = sum(value.sum() for value in student.parameters()).item()
            return lambda: {"val_error_percent": seen}

        return student, train(given(student, counting(objective, act), look), backend())

    whole = run_with("whole")
    with pytest.raises(Interrupted):
        run_with("stopped", stop_at(last))
    assert_same(run_with("stopped"), whole)
    # What was finished gives the same again, without a step.
    steps = []
    assert_same(run_with("stopped", steps.append), whole)
    assert steps == []
    with safe_open(tmp_path / "stopped" / "checkpoint.safetensors", "pt") as file:
        raw, mean = (file.get_tensor(f"{group}parameter/fc1.weight") for group in ("", "average/"))
        assert any(name.startswith("second/") for name in file.keys()) == (options is ADAM_OPTIONS)  # noqa: SIM118
    assert not torch.equal(raw, mean)
    assert options.get("patience") or torch.equal(mean, whole[0].get_parameter("fc1.weight"))


def test_convolutions_are_continued_in_their_layout(tmp_path: Path):
    examples = Split(normal(13, *IMAGE, seed=6), torch.arange(13) % CLASSES)

    def convolutional(folder: str, act: Callable[[int], None] = lambda steps: None) -> tuple[nn.Module, Progress]:
        how = method("kd")
        student = backend().to_device(how.prepare(small("lenet")))
        objective, given = how.objective(student, None, 13), partial(training(tmp_path / folder), examples=examples)
        return student, train(given(student, counting(objective, act), no_figures), backend())

    with pytest.raises(Interrupted):
        convolutional("stopped", stop_at(5))
    continued = convolutional("stopped")
    filters = [parameter for parameter in continued[0].parameters() if parameter.dim() == 4]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in filters)
    assert not any(each.is_contiguous() for each in filters if each.shape[1] > 1)
    assert_same(continued, convolutional("whole"))


def test_stopped_many_times(tmp_path: Path, uninterrupted):
    given = training(tmp_path)
    for _ in range(5):
        with pytest.raises(Interrupted):
            run(given, stop_at(2))
    assert_same(run(given), uninterrupted)


def test_killed_between_two_checkpoints(tmp_path: Path, uninterrupted):
    """What a SIGKILL leaves is the last checkpoint in time; here every step writes one."""

    def fail(steps: int) -> None:
        if steps == 8:
            raise MemoryError

    given = training(tmp_path, checkpoint_seconds=0.0)
    with pytest.raises(MemoryError):
        run(given, fail)
    steps = []
    assert_same(run(given, steps.append), uninterrupted)
    assert len(steps) == EPOCHS * STEPS_PER_EPOCH - 7


def test_checkpoints_leave_the_result_alone(tmp_path: Path, uninterrupted):
    assert_same(run(training(tmp_path, checkpoint_seconds=0.0)), uninterrupted)


@pytest.mark.parametrize(("seconds", "saved"), [(0.65, [7, 12]), (0.01, [1, 6, 11, 12])], ids=["rare", "often"])
def test_checkpoints_take_at_most_their_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, saved: list[int]
):
    """Every step takes 0.1 s and every checkpoint 0.009 s, a fiftieth of 0.45 s."""
    now, steps = 0.0, list[int]()

    def work(_: int) -> None:
        nonlocal now
        now += 0.1

    def slow(path: Path, identity: str, progress: Progress, tensors: dict[str, Tensor]) -> None:
        nonlocal now
        now += 0.009
        steps.append(progress.steps)

    monkeypatch.setattr("kdx.training.trainer.time.monotonic", lambda: now)
    monkeypatch.setattr("kdx.training.learner.save_checkpoint", slow)
    run(training(tmp_path, checkpoint_seconds=seconds), work)
    assert steps == saved


def test_time_spent_is_added_up(tmp_path: Path):
    given, started = training(tmp_path), time.monotonic()
    with pytest.raises(Interrupted):
        run(given, stop_at(5))
    with safe_open(given.keywords["checkpoint"], "pt") as file:
        assert '"epoch_seconds": 0.0,' not in file.metadata()["kdx"].replace("\\", "")
    _, progress = run(given)
    # Evaluation and checkpoints take time too, which no epoch is charged for.
    assert sum(row["seconds"] for row in progress.history) < progress.seconds < time.monotonic() - started


ERRORS = [9.0, 7.0, 7.5, 7.0, 3.0, 3.0]
"""With a patience of two: the second epoch is the best, and the fourth the last."""


def impatient(folder: Path, act: Callable[[int], None] = lambda steps: None) -> tuple[nn.Module, Progress]:
    given = training(folder)
    given = partial(given, trainer=given.keywords["trainer"].model_copy(update={"patience": 2, "epochs": len(ERRORS)}))
    student, objective = student_and_objective()

    def errors(epoch: int) -> PendingMetrics:
        return lambda: {"val_error_percent": ERRORS[epoch - 1]}

    progress = train(given(student, counting(objective, act), errors), backend())
    return student, progress


# Before there is a best epoch, in the best one, after it, at its end, at the very end.
@pytest.mark.parametrize("last", [2, 5, 6, 8, 9, EPOCHS * STEPS_PER_EPOCH])
def test_early_stopping_survives_a_stop(tmp_path: Path, last: int):
    whole = impatient(tmp_path / "whole")
    assert (len(whole[1].history), whole[1].best_epoch) == (EPOCHS, 2)
    with pytest.raises(Interrupted):
        impatient(tmp_path / "stopped", stop_at(last))
    continued = impatient(tmp_path / "stopped")
    assert_same(continued, whole)
    assert continued[1].best_epoch == 2
    # What was finished gives the same again, without a step.
    steps = []
    assert_same(impatient(tmp_path / "stopped", steps.append), whole)
    assert steps == []


def test_signals_are_the_callers_again_afterwards(tmp_path: Path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    given = training(tmp_path)
    with pytest.raises(Interrupted):
        run(given, lambda steps: signal.raise_signal(signal.SIGTERM))
    run(given)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_stops_at_once(tmp_path: Path):
    def twice(steps: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as error:
        run(training(tmp_path), twice)
    assert not isinstance(error.value, Interrupted)


def test_a_damaged_checkpoint_is_refused_with_a_line_in_the_log(tmp_path: Path, uninterrupted, caplog):
    given = training(tmp_path)
    with pytest.raises(Interrupted):
        run(given, stop_at(5))
    given.keywords["checkpoint"].write_bytes(given.keywords["checkpoint"].read_bytes()[:-100])
    assert_same(run(given), uninterrupted)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "kdx.training.checkpoint"]
    assert f"checkpoint {given.keywords['checkpoint']} is damaged" in line
    assert "training starts from the beginning" in line


def test_the_checkpoint_of_another_training_is_refused_with_a_line_in_the_log(tmp_path: Path, uninterrupted, caplog):
    given = training(tmp_path, identity="another one")
    with pytest.raises(Interrupted):
        run(given, stop_at(5))
    assert_same(run(training(tmp_path)), uninterrupted)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "kdx.training.checkpoint"]
    assert f"checkpoint {given.keywords['checkpoint']} belongs to another training" in line


def tensors(**changes) -> dict[str, Tensor]:
    return {"a": torch.arange(3.0), "b": torch.tensor([1, 2], dtype=torch.uint8)} | changes


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path):
    progress = Progress(7, 1.5, 0.25, [{"loss": 0.1, "val_error_percent": None}])
    save_checkpoint(tmp_path / "c", "mine", progress, tensors())
    into = {name: torch.zeros_like(value) for name, value in tensors().items()}
    assert load_checkpoint(tmp_path / "c", "mine", into) == progress
    assert all(torch.equal(into[name], value) for name, value in tensors().items())


@pytest.mark.parametrize(
    "wanted",
    [
        tensors(a=torch.zeros(4)),
        tensors(a=torch.zeros(3, dtype=torch.float64)),
        tensors(c=torch.zeros(1)),
        {"a": torch.zeros(3)},
    ],
)
def test_tensors_that_do_not_fit_are_refused_untouched(tmp_path: Path, wanted: dict[str, Tensor], caplog):
    save_checkpoint(tmp_path / "c", "mine", Progress(7), tensors(a=torch.full((3,), 9.0)))
    before = {name: value.clone() for name, value in wanted.items()}
    assert load_checkpoint(tmp_path / "c", "mine", wanted) is None
    assert all(torch.equal(value, before[name]) for name, value in wanted.items())
    assert "belongs to another training or version" in caplog.text


def test_without_a_checkpoint_nothing_is_said(tmp_path: Path, caplog):
    assert load_checkpoint(tmp_path / "absent", "mine", tensors()) is None
    assert not caplog.records


def test_it_is_recorded_that_a_training_was_executed_in_two_ways():
    progress = Progress()
    for threads in (2, 2, 1, 1):
        progress.note({"device": "cpu", "threads": threads})
    assert progress.execution() == {"device": "cpu", "threads": "2, then 1"}
    assert Progress(executed=[{"threads": 2}]).execution() == {"threads": 2}
    assert Progress().execution() == {}


def test_the_way_of_execution_goes_through_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Interrupted):
        run(training(tmp_path), stop_at(5))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        _, progress = run(training(tmp_path))
    finally:
        torch.set_num_threads(before)
    told = progress.execution()
    assert told["threads"] == f"{before}, then {before + 1}"
    assert (told["execution"], told["precision"], told["device"]) == ("eager", "fp32", "cpu")
