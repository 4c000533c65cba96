"""The loss of iterative knowledge distillation: by hand, and where it becomes something known."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import method, perceptron, split, step_of
from torch import Tensor

from kdx.objective import Objective, Step


def objective(**settings: object) -> Objective:
    return method("kd-mixture", **settings).objective(perceptron(), perceptron(seed=1), 6)


def two_classes(terms: Objective, T: float) -> Step:
    """The student says 1/4 and 3/4 at temperature T, the teacher 1/2; then both say the same; labels 1 and 0."""
    return Step(
        logits=torch.tensor([[0.0, T * log(3)], [1.0, 1.0]], dtype=torch.float64),
        labels=torch.tensor([1, 0]),
        teacher_logits=torch.tensor([[5.0, 5.0], [2.0, 2.0]], dtype=torch.float64),
        parameters={},
        numbers={name: torch.tensor(value(0.0), dtype=torch.float64) for name, value in terms.numbers.items()},
    )


@pytest.mark.parametrize(("reduction", "divisor"), [("batch", 2), ("elementwise", 4)])
def test_by_hand(reduction: str, divisor: int):
    terms = objective(T=2.0, alpha=0.7, reduction=reduction)
    loss, values = terms.loss(two_classes(terms, T=2.0))
    # At temperature 1 the student's first odds are 1 to 9, so that it gives the label 9/10; the second label gets 1/2.
    cross_entropy = (log(10 / 9) + log(2)) / 2
    hint = 2 * 4 * 0.5 * log(4 / 3) / divisor
    # Rounding of a handful of float64 operations.
    assert values.tolist() == pytest.approx([cross_entropy, hint], rel=1e-13)
    assert loss.item() == pytest.approx(0.3 * cross_entropy + 0.7 * hint, rel=1e-13)


def miniature(terms: Objective) -> tuple[Step, Tensor]:
    examples = split(6)
    student = perceptron(seed=2)
    step = step_of(student, terms, examples, student(examples.images))
    return step, terms.loss(step)[0]


def test_without_a_hint_it_is_the_plain_method():
    step, loss = miniature(objective(alpha=0))
    assert torch.equal(loss, F.cross_entropy(step.logits, step.labels))
    plain = method("vanilla").objective(perceptron(), None, 6)
    assert torch.equal(loss, plain.loss(step)[0])


def test_without_labels_it_is_the_hint_alone():
    step, loss = miniature(objective(alpha=1.0, T=3.0))
    hint = method("kd", T=3.0, lambda_T=1.0).objective(perceptron(), perceptron(seed=1), 6)
    torch.testing.assert_close(loss, hint.terms["hint"].value(step), rtol=0, atol=0)
    assert loss.item() > 0


def test_the_papers_settings_are_the_defaults():
    numbers = objective().numbers
    assert {name: number(0.0) for name, number in numbers.items()} == pytest.approx(
        {"T": 20, "alpha": 0.7, "one_minus_alpha": 0.3}
    )
