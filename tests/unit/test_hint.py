"""The distillation term: values by hand, limits, gradients."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from miniature import CLASSES, method, normal, perceptron, split, step_of
from torch import Tensor

from kdx.methods.hint import distillation_loss

TS = 0.5 * log(4 / 3)
"""KL((1/2, 1/2) || (1/4, 3/4))."""
ST = 0.25 * log(1 / 2) + 0.75 * log(3 / 2)
"""KL((1/4, 3/4) || (1/2, 1/2))."""
BOTH = pytest.mark.parametrize("direction", ["ts", "st"])


def double(value) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def loss(student: Tensor, teacher: Tensor, T: float, direction="ts", reduction="batch") -> Tensor:
    return distillation_loss(student, teacher, double(T), direction, reduction)


def logits(seed: int, rows: int = 7) -> Tensor:
    return normal(rows, CLASSES, seed=seed, dtype=torch.float64)


@pytest.mark.parametrize(
    ("direction", "reduction", "T", "expected"),
    [
        ("ts", "batch", 1.0, 2 * TS / 2),
        ("st", "batch", 1.0, 2 * ST / 2),
        ("ts", "elementwise", 1.0, 2 * TS / 4),
        ("st", "elementwise", 1.0, 2 * ST / 4),
        ("ts", "batch", 3.0, 18 * TS / 2),
        ("st", "elementwise", 3.0, 18 * ST / 4),
    ],
)
def test_values_by_hand(direction, reduction, T, expected):
    """Two examples of two classes: the student says 1/4 and 3/4, the teacher 1/2; then both say the same."""
    student = double([[0.0, T * log(3)], [1.0, 2.0]])
    teacher = double([[5.0, 5.0], [1.0, 2.0]])
    # Rounding of a handful of float64 operations.
    assert loss(student, teacher, T, direction, reduction).item() == pytest.approx(expected, rel=1e-13)


def test_elementwise_is_the_code_behind_the_paper():
    student, teacher, T = logits(0), logits(1), 4.0
    # szagoruyko/attention-transfer of 2017 at alpha = 1; kl_div averaged over batch and classes then.
    divergence = F.kl_div(F.log_softmax(student / T, 1), F.softmax(teacher / T, 1), reduction="batchmean")
    published = divergence / CLASSES * (T * T * 2)
    torch.testing.assert_close(loss(student, teacher, T, reduction="elementwise"), published)


@BOTH
def test_equal_logits_give_zero_and_pull_nowhere(direction):
    student = logits(0).requires_grad_()
    value = loss(student, student.detach() + 3.0, 2.0, direction)
    (gradient,) = torch.autograd.grad(value, student)
    assert abs(value.item()) < 1e-14
    assert gradient.abs().max() < 1e-14


@BOTH
@pytest.mark.parametrize("T", [0.5, 2.0, 20.0])
def test_different_logits_cost(direction, T):
    for seed in range(5):
        assert loss(logits(seed), logits(seed + 100), T, direction).item() > 0


def test_the_directions_differ_at_low_temperature():
    assert loss(logits(0), logits(1), 1.0, "ts").item() != pytest.approx(loss(logits(0), logits(1), 1.0, "st").item())


@BOTH
def test_a_high_temperature_gives_the_squared_difference_of_centred_logits(direction):
    student, teacher = logits(0), logits(1)
    difference = (student - student.mean(dim=1, keepdim=True)) - (teacher - teacher.mean(dim=1, keepdim=True))
    limit = difference.square().sum(dim=1).mean() / CLASSES
    # The next term of the expansion is smaller by max|z| / T, here 3e-3.
    torch.testing.assert_close(loss(student, teacher, 1000.0, direction), limit, rtol=3e-3, atol=0)
    # SPEC 1.3: at T = 20 they are still within a few per cent.
    torch.testing.assert_close(loss(student, teacher, 20.0, direction), limit, rtol=0.05, atol=0)


def test_the_gradient_from_teacher_to_student_is_the_difference_of_the_predictions():
    student, teacher, T = logits(0).requires_grad_(), logits(1), 3.0
    (gradient,) = torch.autograd.grad(loss(student, teacher, T), student)
    expected = 2 * T * (F.softmax(student / T, 1) - F.softmax(teacher / T, 1)) / len(student)
    torch.testing.assert_close(gradient, expected.detach())


@BOTH
@pytest.mark.parametrize("reduction", ["batch", "elementwise"])
def test_gradients_by_differences(direction, reduction):
    student, teacher = logits(0, rows=3).requires_grad_(), logits(1, rows=3)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, 2.0, direction, reduction), (student,))


@BOTH
def test_confident_logits_stay_finite(direction):
    student = torch.tensor([[300.0, -300.0]], requires_grad=True)
    value = distillation_loss(student, torch.tensor([[-300.0, 300.0]]), torch.tensor(1.0), direction, "batch")
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_the_method_passes_its_settings_on():
    settings = {"T": 5.0, "lambda_T": 0.3, "kl_dir": "st", "reduction": "elementwise"}
    student, examples = perceptron(), split(6)
    objective = method("kd", **settings).objective(student, perceptron(seed=1), len(examples))
    step = step_of(student, objective, examples, student(examples.images))
    assert step.teacher_logits is not None
    expected = distillation_loss(step.logits, step.teacher_logits, torch.tensor(5.0), "st", "elementwise")
    torch.testing.assert_close(objective.terms["hint"].value(step), expected)
    total, _ = objective.loss(step)
    torch.testing.assert_close(total, F.cross_entropy(step.logits, step.labels) + 0.3 * expected)
