"""KDDP's distillation term: values by hand, a second formula, limits, gradients."""

from dataclasses import replace
from math import log

import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import CLASSES, double, logits, method, perceptron, split, step_of

from kdx.errors import UserError
from kdx.methods.soft_labels import soft_cross_entropy


@pytest.mark.parametrize("T", [1.0, 3.0])
def test_a_value_by_hand(T: float):
    """Two examples of two classes: teacher 1/2 and student 1/4, 3/4; then teacher 1/4, 3/4 and student 1/2."""
    student, teacher = double([[0.0, T * log(3)], [2.0, 2.0]]), double([[5.0, 5.0], [0.0, T * log(3)]])
    first = 0.5 * log(4) + 0.5 * log(4 / 3)
    # No T^2: the value does not depend on T but through the predictions.
    assert soft_cross_entropy(student, teacher, double(T)).item() == pytest.approx((first + log(2)) / 2, rel=1e-13)


def test_it_is_the_divergence_plus_the_teachers_entropy():
    student, teacher, T = logits(0), logits(1), 4.0
    p = F.softmax(teacher / T, dim=1)
    divergence = F.kl_div(F.log_softmax(student / T, dim=1), p, reduction="batchmean")
    entropy = -(p * p.log()).sum(dim=1).mean()
    torch.testing.assert_close(soft_cross_entropy(student, teacher, double(T)), divergence + entropy)


def test_a_certain_teacher_gives_the_cross_entropy_with_its_labels():
    student, labels = logits(0), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    teacher = 1e4 * F.one_hot(labels, CLASSES).double()
    torch.testing.assert_close(soft_cross_entropy(student, teacher, double(1.0)), F.cross_entropy(student, labels))


@pytest.mark.parametrize("T", [1.0, 2.0, 50.0])
def test_the_gradient_is_the_difference_of_the_predictions_over_the_temperature(T: float):
    """Hinton's factor T^2 would make it grow with T instead."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    (gradient,) = torch.autograd.grad(soft_cross_entropy(student, teacher, double(T)), student)
    expected = (F.softmax(student / T, 1) - F.softmax(teacher / T, 1)) / (T * len(student))
    torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_method_mixes_labels_and_teacher(alpha: float):
    student, examples = perceptron(), split(6)
    objective = method("kddp", alpha=alpha, T=3.0, L1=0.0).objective(student, perceptron(seed=1), len(examples))
    step = step_of(student, objective, examples, student(examples.images))
    step = replace(step, activations={"fc1_relu": torch.ones(6, 5)})
    assert step.teacher_logits is not None
    soft = -(F.softmax(step.teacher_logits / 3, 1) * F.log_softmax(step.logits / 3, 1)).sum() / 6
    total, terms = objective.loss(step)
    torch.testing.assert_close(total, (1 - alpha) * F.cross_entropy(step.logits, step.labels) + alpha * soft)
    torch.testing.assert_close(terms[1], soft.detach())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"method\.alpha: 1\.5 is not allowed; allowed: a finite number >= 0 and <= 1"),
        ({"T": 0.0}, r"method\.T: 0\.0 is not allowed; allowed: a finite number >= 0\.001"),
        ({"L1": -1.0}, r"method\.L1: -1\.0 is not allowed"),
        ({"l1_reduction": "max"}, r"method\.l1_reduction: 'max' is not allowed; .*allowed: one of sum, mean"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        method("kddp", **settings)
