"""The terms that follow a teacher, its soft labels and its mixture with labels: by hand, limits, gradients."""

from dataclasses import replace
from math import log, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import CLASSES, double, logits, method, perceptron, split, step_of
from torch import Tensor

from kdx.errors import UserError
from kdx.methods.distillation import decoupled_loss, distillation_loss, soft_cross_entropy, standardized
from kdx.training.objective import LossInputs, Objective

TS = 0.5 * log(4 / 3)
"""KL((1/2, 1/2) || (1/4, 3/4))."""
ST = 0.25 * log(1 / 2) + 0.75 * log(3 / 2)
"""KL((1/4, 3/4) || (1/2, 1/2))."""
BOTH = pytest.mark.parametrize("direction", ["ts", "st"])


def loss(student: Tensor, teacher: Tensor, T: float, direction="ts", reduction="batch") -> Tensor:
    return distillation_loss(student, teacher, double(T), direction, reduction)


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
    # As T grows, 2 T^2 KL tends to the squared difference of the centred logits; at T = 20 to within a few per cent.
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


LABELS = torch.tensor([0, 3, 1, 2, 2, 0, 3])
BOTH_REDUCTIONS = pytest.mark.parametrize("reduction", ["batch", "elementwise"])


def parts_by_hand(student: Tensor, teacher: Tensor, T: float, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """TCKD and NCKD (batch,) by probabilities in numpy, as the paper defines them."""

    def softmax(logits: Tensor) -> np.ndarray:
        powers = np.exp(logits.numpy() / T)
        return powers / powers.sum(axis=1, keepdims=True)

    tckd, nckd = [], []
    for p_student, p_teacher, label in zip(softmax(student), softmax(teacher), LABELS.tolist(), strict=True):
        p, q = (p_teacher, p_student) if direction == "ts" else (p_student, p_teacher)
        others = [index for index in range(CLASSES) if index != label]
        tckd.append(p[label] * np.log(p[label] / q[label]) + (1 - p[label]) * np.log((1 - p[label]) / (1 - q[label])))
        p_hat, q_hat = p[others] / (1 - p[label]), q[others] / (1 - q[label])
        nckd.append((p_hat * np.log(p_hat / q_hat)).sum())
    return np.array(tckd), np.array(nckd)


@BOTH
@BOTH_REDUCTIONS
@pytest.mark.parametrize("T", [1.0, 4.0])
def test_both_sides_of_the_divergence_by_hand(direction, reduction, T):
    student, teacher = logits(0), logits(1)
    tckd, nckd = parts_by_hand(student, teacher, T, direction)
    assert min(tckd.min(), nckd.min()) >= 0
    for beta in (0.0, 1.0, 8.0):
        found = decoupled_loss(student, teacher, LABELS, double(T), double(beta), direction, reduction)
        expected = 2 * T * T * (tckd + beta * nckd).mean() / (1 if reduction == "batch" else CLASSES)
        assert found.item() == pytest.approx(expected, rel=1e-12)


@BOTH
@BOTH_REDUCTIONS
@pytest.mark.parametrize("T", [1.0, 4.0])
def test_weighted_by_the_others_probability_the_sides_are_the_whole(direction, reduction, T):
    """Of whoever the divergence starts from: 1 - p_t of the teacher, as the paper has it, or of the student."""
    student, teacher = logits(0), logits(1)
    p = F.softmax((teacher if direction == "ts" else student) / T, dim=1)
    beta = 1 - p.gather(1, LABELS.unsqueeze(1)).squeeze(1)
    found = decoupled_loss(student, teacher, LABELS, double(T), beta, direction, reduction)
    torch.testing.assert_close(found, loss(student, teacher, T, direction, reduction), rtol=1e-12, atol=0)


@BOTH
def test_gradients_of_both_sides_by_differences(direction):
    student, teacher = logits(0).requires_grad_(), logits(1)
    assert torch.autograd.gradcheck(
        lambda z: decoupled_loss(z, teacher, LABELS, double(2.0), double(3.0), direction, "batch"), (student,)
    )


@BOTH
def test_a_sure_teacher_or_student_leaves_both_sides_finite(direction):
    student = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    teacher, label = torch.tensor([[-300.0, 300.0, 0.0]]), torch.tensor([1])
    value = decoupled_loss(student, teacher, label, torch.tensor(1.0), torch.tensor(8.0), direction, "batch")
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_z_scores_by_numpy():
    found, given = standardized(logits(0)), logits(0).numpy()
    expected = (given - given.mean(axis=1, keepdims=True)) / given.std(axis=1, keepdims=True)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=0)
    # The bound of the paper, section 4.3.
    assert found.abs().max() <= sqrt(CLASSES - 1)
    torch.testing.assert_close(standardized(3.0 * logits(0) + 5.0), found, rtol=1e-6, atol=0)


def test_the_loss_of_z_scores_is_that_of_the_toy_case():
    """Figure 2 of Sun et al. 2024: a student as sure as its teacher but wrong loses 0.0995, one that is right nothing.

    Its z-scores have the deviation of a sample: ours at a temperature of sqrt(K / (K - 1)).
    """
    teacher, wrong, right = (double([row]) for row in ([-3.0, 3, 1, -1], [-6.0, 3, 4, -1], [-0.3, 0.3, 0.1, -0.1]))
    T = sqrt(4 / 3)
    for student, expected in ((wrong, 0.0995), (right, 0.0)):
        value = loss(standardized(student), standardized(teacher), T).item() / (2 * T * T)
        assert value == pytest.approx(expected, abs=5e-5)


def test_gradients_of_z_scores_by_differences():
    student, teacher = logits(0).requires_grad_(), standardized(logits(1))
    assert torch.autograd.gradcheck(lambda z: loss(standardized(z), teacher, 2.0), (student,))
    # They are pulled in no direction that changes neither order nor distances' ratios.
    (gradient,) = torch.autograd.grad(loss(standardized(student), teacher, 2.0), student)
    assert gradient.sum(dim=1).abs().max() < 1e-12
    assert (gradient * student).sum(dim=1).abs().max() < 1e-6


def test_logits_that_are_all_equal_have_z_scores_of_zero():
    given = torch.full((2, CLASSES), 3.0, requires_grad=True)
    found = standardized(given)
    assert not found.any()
    (gradient,) = torch.autograd.grad(loss(found.double(), standardized(logits(0, rows=2)), 2.0), given)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_method_passes_its_options_on(standardize: bool, decoupled: bool):
    settings = {"T": 3.0, "lambda_T": 0.5, "standardize": standardize, "decoupled": decoupled, "beta": 2.5}
    student, examples = perceptron(), split(6)
    objective = method("kd", **settings).objective(student, None, len(examples))
    step = step_of(student, objective, examples, student(examples.images))
    assert step.teacher_logits is not None
    pair = [standardized(each) if standardize else each for each in (step.logits, step.teacher_logits)]
    T, beta = torch.tensor(3.0), torch.tensor(2.5)
    expected = distillation_loss(*pair, T, "ts", "batch")
    if decoupled:
        expected = decoupled_loss(*pair, step.labels, T, beta, "ts", "batch")
    torch.testing.assert_close(objective.terms["hint"].value(step), expected)
    total, _ = objective.loss(step)
    torch.testing.assert_close(total, F.cross_entropy(step.logits, step.labels) + 0.5 * expected)


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


def objective(**settings: object) -> Objective:
    return method("kd-mixture", **settings).objective(perceptron(), perceptron(seed=1), 6)


def two_classes(terms: Objective, T: float) -> LossInputs:
    """The student says 1/4 and 3/4 at temperature T, the teacher 1/2; then both say the same; labels 1 and 0."""
    return LossInputs(
        logits=torch.tensor([[0.0, T * log(3)], [1.0, 1.0]], dtype=torch.float64),
        labels=torch.tensor([1, 0]),
        teacher_logits=torch.tensor([[5.0, 5.0], [2.0, 2.0]], dtype=torch.float64),
        parameters={},
        hyperparameters={
            name: torch.tensor(value(0.0), dtype=torch.float64) for name, value in terms.hyperparameters.items()
        },
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


def miniature(terms: Objective) -> tuple[LossInputs, Tensor]:
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
    numbers = objective().hyperparameters
    assert {name: number(0.0) for name, number in numbers.items()} == pytest.approx(
        {"T": 20, "alpha": 0.7, "one_minus_alpha": 0.3}
    )
