"""What is no longer finite in a training: when it is noticed, how it is named, and what is left."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.miniature import backend, no_figures, perceptron
from helpers.trainings import numbered, training, two
from torch import Tensor

from kdx.errors import Diverged
from kdx.storage.tensors import load_tensors
from kdx.training.learner import Learner
from kdx.training.objective import LossInputs, Objective, Term
from kdx.training.step import make_step
from kdx.training.trainer import train


def infinite(step: LossInputs) -> Tensor:
    return step.logits.mean() / 0


def undefined(step: LossInputs) -> Tensor:
    return step.logits.mean().detach() * float("nan")


@pytest.mark.parametrize("bad", [infinite, undefined])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_not_finite_ends_the_training_and_names_the_term(
    tmp_path: Path, bad: Callable[[LossInputs], Tensor], place: int
):
    terms = [("first", Term(two)), ("second", Term(two))]
    terms.insert(place, ("culprit", Term(bad)))
    message = r"miniature: culprit is no longer finite in epoch 1, step 1; try a lower trainer\.lr$"
    with pytest.raises(Diverged, match=message):
        train(training(tmp_path, numbered(12))(perceptron(), Objective(dict(terms)), no_figures), backend())


class Breaking:
    """A term that goes wrong in one step; `how` is given the step and gives a number."""

    def __init__(self, at: int, how: Callable[[LossInputs], Tensor]) -> None:
        self.at, self.how, self.steps = at, how, 0

    def __call__(self, step: LossInputs) -> Tensor:
        self.steps += 1
        return self.how(step) if self.steps == self.at else step.logits.square().mean()


def steep(step: LossInputs) -> Tensor:
    """Finite, but its gradient is not."""
    return (step.parameters["fc1.weight"] * 0).sum().sqrt()


def too_steep_to_square(step: LossInputs) -> Tensor:
    return step.parameters["fc2.bias"].sum() * 1e30


def breaking(
    folder: Path, at: int, how: Callable[[LossInputs], Tensor], count: int = 12, **settings
) -> tuple[Breaking, str]:
    """Train with such a term, three steps in an epoch, and give what the trainer said."""
    term = Breaking(at, how)
    given = training(folder, numbered(count), **settings)
    with pytest.raises(Diverged) as failure:
        train(given(perceptron(), Objective({"fine": Term(two), "term": Term(term)}), no_figures), backend())
    return term, str(failure.value)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6, 8])
def test_training_stops_at_the_step_that_breaks_and_names_it(tmp_path: Path, at: int):
    term, said = breaking(tmp_path, at, infinite)
    assert term.steps == at
    assert said.startswith(f"miniature: term is no longer finite in epoch {(at + 2) // 3}, step {(at - 1) % 3 + 1};")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", [1, 2, 4, 7])
def test_a_gradient_that_breaks_is_noticed_one_step_later_and_named_with_its_own_step(tmp_path: Path, at: int):
    term, said = breaking(tmp_path, at, steep)
    assert term.steps == at + 1
    named = f"the gradient of fc1.weight is no longer finite in epoch {(at + 2) // 3}, step {(at - 1) % 3 + 1};"
    assert said.startswith(f"miniature: {named}")


def test_what_breaks_in_the_last_step_of_all_is_noticed(tmp_path: Path):
    term, said = breaking(tmp_path, 9, steep)
    assert (term.steps, said.partition(" is ")[0]) == (9, "miniature: the gradient of fc1.weight")
    assert "in epoch 3, step 3;" in said
    assert not list(tmp_path.iterdir())


def test_what_the_loss_hides_is_noticed_at_the_end_of_the_epoch(tmp_path: Path):
    """The square overflows, so that Adam divides by infinity and the weight stands still for good."""
    term, said = breaking(tmp_path, 4, too_steep_to_square)
    assert (term.steps, said.partition(" is ")[0]) == (6, "miniature: the square of the gradient of fc2.bias")


def test_a_weight_that_overflows_is_named(tmp_path: Path):
    _, said = breaking(tmp_path, 100, infinite, count=4, lr=1e39)
    assert said.startswith(
        "miniature: fc1.weight, fc1.bias, fc2.weight and 1 more is no longer finite in epoch 1, step 1"
    )


@pytest.mark.parametrize("how", [infinite, steep])
def test_the_last_good_checkpoint_is_kept(tmp_path: Path, how: Callable[[LossInputs], Tensor]):
    """A checkpoint after every step: the one that is left was written before the step that breaks."""
    breaking(tmp_path, 5, how, checkpoint_seconds=0.0)
    tensors, header = load_tensors(tmp_path / "checkpoint")
    assert header["progress"]["steps"] == 4
    assert all(value.isfinite().all() for value in tensors.values())


def test_where_only_a_checkpoint_finds_it_no_step_is_taken_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a GPU, where a step does not wait for a look at its loss."""
    monkeypatch.setattr(Learner, "first_nonfinite", lambda member: None)
    term, said = breaking(tmp_path, 4, infinite, checkpoint_seconds=0.0)
    assert (term.steps, said.partition(" is ")[0]) == (4, "miniature: term")


def test_where_nobody_looks_within_an_epoch_the_weights_stand_still_from_the_first_bad_step_on():
    """As on a GPU: the counter tells the step and the term, although later steps break other terms."""
    for eager in (True, False):
        student = perceptron()
        first, second = Breaking(3, infinite), Breaking(5, undefined)
        objective = Objective({"fine": Term(two), "early": Term(first), "late": Term(second)})
        member = Learner(training(Path(), numbered(24))(student, objective, no_figures))
        step = make_step(student, objective, eager=eager, autocast=None)
        rows, order = torch.from_numpy(member.schedule(0)).float(), member.spec.order(0)
        weights = []
        for index in range(6):
            step(member.state, member.spec.batch(order[4 * index : 4 * index + 4]), {}, rows[index])
            member.progress.steps += 1
            weights.append(torch.cat([value.flatten().clone() for value in member.state.parameters.values()]))
        assert not torch.equal(weights[0], weights[1])
        assert all(value.isfinite().all() for value in weights)
        assert all(torch.equal(value, weights[1]) for value in weights[2:])
        assert member.state.broken.tolist() == [4, 0, 4, 2]
        assert str(member.diverged()).startswith("miniature: early is no longer finite in epoch 1, step 3;")
