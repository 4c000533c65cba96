"""The training loop: what it hands to the steps, what it writes down, and where it gives up."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from helpers.miniature import CLASSES, backend, method, named, no_figures, normal, perceptron, split
from helpers.trainings import LR, numbered, training, two
from torch import Tensor, nn

from kdx.training.checkpoint import Progress
from kdx.training.learner import PendingMetrics, TrainSpec
from kdx.training.objective import LossInputs, Objective, Term
from kdx.training.trainer import train, train_fused


class Witness:
    """An objective that notes what every step was given; its loss is any that has a gradient."""

    def __init__(self) -> None:
        self.steps: list[LossInputs] = []
        self.objective = Objective({"seen": Term(self._seen)}, {"half": lambda epoch: epoch / 2})

    def _seen(self, step: LossInputs) -> Tensor:
        self.steps.append(step)
        return step.logits.square().mean()

    def number(self, name: str) -> list[float]:
        return [step.hyperparameters[name].item() for step in self.steps]

    def labels(self) -> list[list[int]]:
        return [step.labels.tolist() for step in self.steps]


def witnessed(folder: Path, count: int = 10, student: nn.Module | None = None, **settings) -> tuple[Witness, Progress]:
    witness, examples = Witness(), numbered(count)
    logits = examples.labels.float().reshape(-1, 1).expand(-1, CLASSES)
    given = training(folder, examples, logits, **settings)
    progress = train(given(student or perceptron(), witness.objective, no_figures), backend())
    return witness, progress


def epochs_of(witness: Witness, per_epoch: int) -> list[list[int]]:
    labels = witness.labels()
    return [list(chain(*labels[start : start + per_epoch])) for start in range(0, len(labels), per_epoch)]


def test_every_epoch_has_every_example_once_in_another_order(tmp_path: Path):
    witness, _ = witnessed(tmp_path, count=12)
    orders = epochs_of(witness, 3)
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in [*orders, list(range(12))]}) == 4


def test_images_labels_and_teacher_logits_belong_together(tmp_path: Path):
    weight = torch.zeros(CLASSES, 36)
    weight[:, 0] = 1.0
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES, bias=False))
    linear[1].weight.data = weight
    witness, _ = witnessed(tmp_path, student=linear, lr=1e-30)
    for step in witness.steps:
        assert step.teacher_logits is not None
        assert step.teacher_logits[:, 0].tolist() == step.labels.tolist() == step.logits[:, 0].tolist()


def test_an_incomplete_batch_is_left_out_but_no_example_for_good(tmp_path: Path):
    witness, _ = witnessed(tmp_path, count=10, epochs=12)
    orders = epochs_of(witness, 2)
    assert all(len(set(order)) == 8 for order in orders)
    assert set().union(*orders) == set(range(10))


@pytest.mark.parametrize("batch_size", [5, 6, 1000])
def test_a_batch_is_at_most_the_data(tmp_path: Path, batch_size: int):
    witness, progress = witnessed(tmp_path, count=5, batch_size=batch_size)
    assert [sorted(labels) for labels in witness.labels()] == [list(range(5))] * 3
    assert progress.steps == 3


def test_the_seed_decides_the_order(tmp_path: Path):
    folders = [tmp_path / name for name in ("first", "again", "other")]
    orders = [witnessed(folder, seed=seed)[0].labels() for folder, seed in zip(folders, (0, 0, 1), strict=True)]
    assert orders[0] == orders[1] != orders[2]


def test_more_epochs_change_nothing_in_the_first_ones(tmp_path: Path):
    """Neither the order of the data nor the noise: with a constant rate the history begins the same."""
    histories = []
    for epochs in (2, 5):
        how, examples = method("st-vbd"), split(12)
        student = how.prepare(perceptron())
        objective = how.objective(student, perceptron(seed=1), 12)
        given = training(tmp_path / str(epochs), examples, normal(12, CLASSES, seed=4), epochs=epochs)
        history = train(given(student, objective, no_figures), backend()).history
        histories.append([without_seconds(row) for row in history])
    assert len(histories[1]) == 5
    assert histories[0] == histories[1][:2]


def without_seconds(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "seconds"}


@pytest.mark.parametrize(
    ("hold", "epochs", "factors"),
    [
        (1.0, 2, [1, 1, 1, 1, 1, 1]),
        (0.5, 2, [1, 1, 1, 1, 2 / 3, 1 / 3]),
        (0.0, 2, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (0.5, 1, [1, 1, 2 / 3]),
    ],
)
def test_the_rate_is_held_and_then_falls_to_zero(tmp_path: Path, hold: float, epochs: int, factors: list[float]):
    """Linearly towards the end of the last step, so that the last step still moves: three steps in each epoch."""
    witness, progress = witnessed(tmp_path, count=12, hold=hold, epochs=epochs)
    assert witness.number("lr") == pytest.approx([LR * factor for factor in factors], rel=1e-6)
    assert min(witness.number("lr")) > 0
    # The history has the rate of the last step of each epoch.
    assert [row["lr"] for row in progress.history] == pytest.approx(witness.number("lr")[2::3], rel=1e-6)


def test_numbers_are_functions_of_the_time_in_epochs(tmp_path: Path):
    witness, _ = witnessed(tmp_path, count=8, epochs=2)
    assert witness.number("half") == [0, 0.25, 0.5, 0.75]
    assert witness.number("steps") == [1, 2, 3, 4]
    assert witness.number("bias1") == pytest.approx([1 - 0.9**steps for steps in (1, 2, 3, 4)])
    assert witness.number("bias2") == pytest.approx([1 - 0.999**steps for steps in (1, 2, 3, 4)])


def test_the_history_has_means_figures_and_monitors(tmp_path: Path):
    objective = Objective(
        terms={"one": Term(lambda step: step.labels.float().mean()), "two": Term(two, weight="w")},
        hyperparameters={"w": lambda _: 0.5},
        monitors={"largest": lambda parameters: max(value.max().item() for value in parameters.values())},
    )
    student = perceptron()
    evaluations = iter([10.0, 20.0, 30.0])

    def evaluate(_epoch: int) -> PendingMetrics:
        return lambda: {"val_error_percent": None, "sparsity_percent": next(evaluations)}

    progress = train(training(tmp_path, numbered(8))(student, objective, evaluate), backend())
    assert list(progress.history[0]) == [
        *("epoch", "loss", "one", "two", "val_error_percent", "sparsity_percent", "largest", "lr", "seconds")
    ]
    assert [row["epoch"] for row in progress.history] == [1, 2, 3]
    assert [row["sparsity_percent"] for row in progress.history] == [10, 20, 30]
    for row in progress.history:
        assert row["one"] == pytest.approx(3.5)
        assert row["loss"] == pytest.approx(3.5 + 0.5 * row["two"], rel=1e-5)
        assert row["seconds"] > 0
    assert progress.history[-1]["largest"] == max(value.max().item() for value in student.parameters())
    assert progress.seconds > sum(row["seconds"] for row in progress.history)


def test_no_epochs_change_nothing(tmp_path: Path):
    student = method("svd").prepare(perceptron())
    before = {name: value.clone() for name, value in student.state_dict().items()}
    given = training(tmp_path, numbered(8))
    given.keywords["trainer"].__dict__["epochs"] = 0  # the settings refuse it
    progress = train(given(student, Witness().objective, no_figures), backend())
    assert progress == Progress()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_training_lowers_the_loss(tmp_path: Path):
    how, examples = method("vanilla"), split(32)
    student = perceptron(hidden=20)
    given = training(tmp_path, examples, epochs=40, batch_size=8)
    history = train(given(student, how.objective(student, None, 32), no_figures), backend()).history
    assert history[-1]["cross_entropy"] < 0.2 * history[0]["cross_entropy"]


def test_all_models_are_asked_for_their_figures_before_one_answer_is_read(tmp_path: Path):
    events = []

    def train_spec(index: int) -> TrainSpec:
        def evaluate(_epoch: int) -> PendingMetrics:
            events.append(f"ask {index}")
            return lambda: events.append(f"read {index}") or {}

        given = training(tmp_path / str(index), numbered(8), seed=index, epochs=2)
        return given(perceptron(seed=index), Witness().objective, evaluate)

    train_fused([train_spec(0), train_spec(1)], backend())
    assert events == ["ask 0", "ask 1", "read 0", "read 1"] * 2


class Judge:
    """An evaluation that gives errors in the order in which they are listed, and keeps the weights of every epoch."""

    def __init__(self, student: nn.Module, errors: list[float]) -> None:
        self.student, self.errors, self.weights = student, errors, []

    def __call__(self, epoch: int) -> PendingMetrics:
        self.weights.append({name: value.clone() for name, value in self.student.state_dict().items()})
        return lambda: {"val_error_percent": self.errors[epoch - 1]}


def judged(folder: Path, errors: list[float], patience: int | None, **settings) -> tuple[nn.Module, Judge, Progress]:
    layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(36, 5), "bn1": nn.BatchNorm1d(5), "fc2": nn.Linear(5, CLASSES)}
    student = named(layers, seed=0)
    judge = Judge(student, errors)
    given = training(folder, numbered(8), epochs=len(errors), patience=patience, **settings)
    return student, judge, train(given(student, Witness().objective, judge), backend())


@pytest.mark.parametrize(
    ("errors", "patience", "epochs", "best"),
    [
        # Two epochs without a lower error, no more and no less.
        ([9, 8, 7, 7.5, 7.2, 1], 2, 5, 3),
        ([9, 8, 8.5, 7, 9, 9, 1], 2, 6, 4),
        ([5, 6, 1], 1, 2, 1),
        # A tie is no improvement, neither for waiting nor for taking.
        ([5, 5, 5, 1], 2, 3, 1),
        ([9, 4, 4, 3, 4, 3, 3], 2, 6, 4),
        # The training ends before the patience does; the best epoch is taken all the same.
        ([9, 5, 6, 6], 3, 4, 2),
        ([9, 8, 7], 3, 3, 3),
        ([100, 0, 0, 0], 50, 4, 2),
    ],
)
def test_patience(tmp_path: Path, errors: list[float], patience: int, epochs: int, best: int):
    student, judge, progress = judged(tmp_path, errors, patience)
    assert (len(progress.history), progress.best_epoch) == (epochs, best)
    assert progress.steps == 2 * epochs
    for name, value in student.state_dict().items():
        assert torch.equal(value, judge.weights[best - 1][name]), name
    # Every epoch moved the weights and the statistics of batch norm, so the comparison above says something.
    moved = [name for name in judge.weights[0] if not torch.equal(judge.weights[0][name], judge.weights[1][name])]
    assert {"fc1.weight", "bn1.running_mean", "bn1.num_batches_tracked"} <= set(moved)


def test_the_best_epoch_is_that_of_the_average(tmp_path: Path):
    """Which is what is judged: the weights of its epoch are averaged ones."""
    student, judge, progress = judged(tmp_path / "averaged", [9, 5, 6, 6], 2, average=0.9)
    _, raw, _ = judged(tmp_path / "raw", [9, 5, 6, 6], 2)
    assert progress.best_epoch == 2
    for name, value in student.state_dict().items():
        assert torch.equal(value, judge.weights[1][name]), name
    assert not torch.equal(judge.weights[1]["fc1.weight"], raw.weights[1]["fc1.weight"])


def test_without_patience_the_last_epoch_is_taken(tmp_path: Path):
    student, judge, progress = judged(tmp_path, [1, 2, 3, 4], None)
    assert (len(progress.history), progress.best_epoch) == (4, None)
    assert all(torch.equal(value, judge.weights[-1][name]) for name, value in student.state_dict().items())


def test_patience_alone_changes_no_epoch(tmp_path: Path):
    errors = [9, 5, 6, 6.5, 1]
    _, impatient, _ = judged(tmp_path / "patience", errors, 2)
    _, patient, _ = judged(tmp_path / "none", errors, None)
    for mine, theirs in zip(impatient.weights, patient.weights[:4], strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
