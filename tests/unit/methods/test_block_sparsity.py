"""Block sparse regularisation against the zero-padded block that VS writes down and kdx never makes."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from helpers.miniature import CLASSES, convolutional, method, normal, perceptron, randomise, split, step_of
from torch import Tensor, nn

from kdx.config.compose import compose_config
from kdx.methods.block_sparsity import EPSILON
from kdx.methods.method import Method
from kdx.models import build_model


def mlp(*widths: int, seed: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
    return randomise(nn.Sequential(*layers), seed).double()


def cnn(channels: int, hidden: int, kernel: int, seed: int) -> nn.Sequential:
    layers = [nn.Conv2d(2, channels, kernel), nn.Conv2d(channels, 2 * channels, 3), nn.Flatten()]
    layers += [nn.Linear(8 * channels, hidden), nn.Linear(hidden, CLASSES)]
    return randomise(nn.Sequential(*layers), seed).double()


PAIRS = {
    "mlp, larger teacher": (lambda: mlp(7, 5, 3, seed=1), lambda: mlp(7, 9, 8, 3, seed=2)),
    "mlp, smaller teacher": (lambda: mlp(7, 8, 6, 3, seed=1), lambda: mlp(7, 4, 3, seed=2)),
    "cnn": (lambda: cnn(3, 6, 2, seed=1), lambda: cnn(5, 9, 3, seed=2)),
    "cnn student, mlp teacher": (lambda: cnn(3, 6, 2, seed=1), lambda: mlp(7, 9, 8, 3, seed=2)),
}
EVERY_PAIR = pytest.mark.parametrize("pair", PAIRS)
EVERY_NORM = pytest.mark.parametrize("norm", ["l1_linf", "l1_l2", "l1_max"])
BOTH_AXES = pytest.mark.parametrize("axis", [0, 1])
# Sums of some hundred float64 numbers; EPSILON under the root adds less than 1e-9 to groups of norm 1e-3 and more.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def st_vbd(norm: str, axis: int, teacher: bool = True) -> Method:
    return method("st-vbd", bsr={"norm": norm, "teacher": teacher, "axis": axis})


def weights_of(network: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def block(weights: list[Tensor]) -> Tensor:
    """All weights zero-padded to one shape and stacked: (M, N, L) for matrices, (M, N, K, H, L) with filters."""
    if any(weight.dim() == 4 for weight in weights):
        weights = [weight if weight.dim() == 4 else weight[:, :, None, None] for weight in weights]
    shape = [max(weight.shape[dim] for weight in weights) for dim in range(weights[0].dim())]
    padded = []
    for weight in weights:
        margins = [(0, whole - part) for whole, part in zip(shape, weight.shape, strict=True)]
        padded.append(torch.nn.functional.pad(weight, [side for pair in reversed(margins) for side in pair]))
    return torch.stack(padded, dim=-1)


def explicit(weights: list[Tensor], norm: str, axis: int) -> Tensor:
    """The norms of the groups of the block along `axis`."""
    groups = block(weights).movedim(axis, 0).flatten(1)
    if norm == "l1_max":
        return groups.amax(dim=1).abs()
    return torch.linalg.vector_norm(groups, ord=float("inf") if norm == "l1_linf" else 2, dim=1)


def term(how: Method, student: nn.Module, teacher: nn.Module | None) -> Tensor:
    objective = how.objective(student, teacher, 10)
    step = step_of(student, objective, split(3), torch.zeros(3, CLASSES, dtype=torch.float64))
    return objective.terms["bsr"].value(step)


@EVERY_PAIR
@EVERY_NORM
@BOTH_AXES
@pytest.mark.parametrize("with_teacher", [True, False])
def test_value_and_gradient_are_those_of_the_explicit_block(pair: str, norm: str, axis: int, with_teacher: bool):
    student, teacher = (build() for build in PAIRS[pair])
    value = term(st_vbd(norm, axis, with_teacher), student, teacher)
    others = [weight.detach() for weight in weights_of(teacher)] if with_teacher else []
    expected = explicit(weights_of(student) + others, norm, axis).sum()
    torch.testing.assert_close(value, expected, **TOLERANCE)

    # The largest number of a group is unique here, so that the gradient of the maximum is too.
    gradients = torch.autograd.grad(value, weights_of(student))
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, weights_of(student)), strict=True):
        torch.testing.assert_close(gradient, wanted, **TOLERANCE)


def test_the_block_of_this_test_is_the_papers():
    """(M, N, L) of an MLP: M the widest output, N the widest input, one layer of L for each matrix of both networks."""
    student, teacher = mlp(7, 5, 3, seed=1), mlp(7, 9, 8, 3, seed=2)
    whole = block(weights_of(student) + weights_of(teacher))
    assert whole.shape == (9, 9, 5)
    assert torch.equal(whole[:5, :7, 0], weights_of(student)[0])
    assert not whole[5:, :, 0].any()
    assert block(weights_of(cnn(3, 6, 2, seed=1))).shape == (6, 24, 3, 3, 4)


@EVERY_NORM
def test_the_teacher_is_constant(norm: str):
    student, teacher = (build() for build in PAIRS["cnn"])
    value = term(st_vbd(norm, 0), student, teacher)
    assert all(gradient is None for gradient in torch.autograd.grad(value, weights_of(teacher), allow_unused=True))


def test_in_the_maximum_norm_only_the_largest_weight_of_a_group_is_pulled():
    student, teacher = (build() for build in PAIRS["mlp, smaller teacher"])
    with torch.no_grad():
        weights_of(teacher)[0].mul_(100)
    value = term(st_vbd("l1_linf", 0), student, teacher)
    gradients = torch.autograd.grad(value, weights_of(student))
    # The teacher's first layer has 4 outputs, so it wins groups 0 to 3; the student's second layer has groups 0 to 5.
    pulled = torch.zeros(8)
    for gradient in gradients:
        pulled[: len(gradient)] += (gradient != 0).sum(dim=1)
    assert pulled.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_printed_maximum_is_blind_to_negative_weights():
    """VS eq. 10 without the bars of the norm: of all negative weights it costs nothing and pulls none."""
    student = mlp(7, 5, 3, seed=1)
    with torch.no_grad():
        for weight in weights_of(student):
            weight.abs_().neg_()
    value = term(st_vbd("l1_max", 0, teacher=False), student, None)
    assert value.item() == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, weights_of(student)))
    assert term(st_vbd("l1_linf", 0, teacher=False), student, None).item() > 0


@EVERY_NORM
def test_groups_of_zeros_cost_nothing_and_have_a_finite_gradient(norm: str):
    student = mlp(7, 5, 3, seed=1)
    with torch.no_grad():
        for weight in weights_of(student):
            weight.zero_()
    value = term(st_vbd(norm, 0, teacher=False), student, None)
    gradients = torch.autograd.grad(value, weights_of(student))
    assert value.item() <= 5 * EPSILON**0.5 * (1 + 1e-9)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_biases_and_variances_are_no_part_of_the_block():
    how, plain = st_vbd("l1_l2", 0), mlp(7, 5, 3, seed=1)
    teacher = mlp(7, 4, 3, seed=2)
    before = term(how, plain, teacher).item()
    student = how.prepare(deepcopy(plain))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if not name.endswith("weight"):
                parameter.fill_(1000.0)
        for layer in teacher:
            layer.bias.fill_(1000.0)
    assert term(how, student, teacher).item() == before


@EVERY_NORM
def test_weights_that_are_no_matrices_are_no_part_of_the_block(norm: str):
    student = mlp(7, 5, 3, seed=1)
    normed = nn.Sequential(*student, nn.LayerNorm(3)).double()
    how = st_vbd(norm, 0, teacher=False)
    assert term(how, normed, None).item() == term(how, student, None).item()


def monitored(how: Method, student: nn.Module, teacher: nn.Module | None) -> float:
    objective = how.objective(student, teacher, 10)
    return objective.monitors["bsr_student_wins"](dict(student.named_parameters()))


@EVERY_PAIR
@EVERY_NORM
@BOTH_AXES
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_groups_that_the_student_wins_by_counting(pair: str, norm: str, axis: int, scale: float):
    student, teacher = (build() for build in PAIRS[pair])
    with torch.no_grad():
        for weight in weights_of(teacher):
            weight.mul_(scale)
    wins = []
    for group in range(max(weight.shape[axis] for weight in weights_of(student))):
        norms = []
        for network in (student, teacher):
            entries = [weight.select(axis, group) for weight in weights_of(network) if group < weight.shape[axis]]
            flat = torch.cat([entry.flatten() for entry in entries]) if entries else torch.zeros(1)
            # Of the printed maximum the padding's zeros are a part.
            sizes = {"l1_linf": flat.abs().max(), "l1_l2": flat.norm(), "l1_max": flat.max().clamp(min=0)}
            norms.append(sizes[norm].item())
        wins.append(norms[0] > norms[1])
    assert monitored(st_vbd(norm, axis), student, teacher) == pytest.approx(sum(wins) / len(wins), abs=1e-6)


@pytest.mark.parametrize(
    ("axis", "scale", "least", "most"),
    [(0, 1, 250, 300), (1, 1, 575, 605), (0, 3, 5, 15), (1, 3, 35, 55), (0, 10, 0, 0), (1, 10, 0, 0)],
)
def test_a_trained_teacher_wins_the_maximum(axis: int, scale: float, least: int, most: int):
    """S1 wins 288 of 500 groups (592 of 784) at initial weights; 10 (45), then none, for a teacher with larger ones."""
    student, teacher = (
        build_model(compose_config([f"student={name}"]).student, (1, 28, 28), 10, seed)
        for name, seed in (("mlp-500-50", 0), ("mlp-1200-1200", 100))
    )
    with torch.no_grad():
        for weight in weights_of(teacher):
            weight.mul_(scale)
    groups = (500, 784)[axis]
    assert least <= groups * monitored(st_vbd("l1_linf", axis), student, teacher) <= most


def test_without_teacher_there_is_nothing_to_win():
    how = st_vbd("l1_linf", 0, teacher=False)
    assert not how.objective(perceptron(), perceptron(seed=1), 10).monitors


def test_the_setting_decides_whether_the_teacher_is_needed():
    parts = {teacher: st_vbd("l1_linf", 0, teacher).modifiers[-1] for teacher in (True, False)}
    assert parts[True].needs_teacher
    assert not parts[False].needs_teacher


def test_the_term_reads_the_parameters_of_the_step():
    student = convolutional().double()
    objective = st_vbd("l1_l2", 0, teacher=False).objective(student, None, 10)
    step = step_of(student, objective, split(3), normal(3, CLASSES, seed=1, dtype=torch.float64))
    before = objective.terms["bsr"].value(step).item()
    step.parameters.update({name: 3 * value for name, value in step.parameters.items()})  # type: ignore[attr-defined]
    assert objective.terms["bsr"].value(step).item() == pytest.approx(3 * before, rel=1e-6)
