"""Methods as sums of weighted terms, and the random streams behind them."""

import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import CLASSES, method, normal, perceptron, split, step_of

from kdx.errors import UserError
from kdx.methods.distillation import CrossEntropy
from kdx.methods.method import Method, build_method
from kdx.rng import derived_seed, make_generator, with_seed
from kdx.training.objective import LossInputs, Objective, Term

LABELS = {"cross_entropy": None}
HINT = {"hint": "lambda_T"}
KL = {"kl": "lambda_V"}
BSR = {"bsr": "lambda_g"}


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("vanilla", LABELS),
        ("dropout", LABELS),
        ("kd", LABELS | HINT),
        ("kd-dropout", LABELS | HINT),
        ("svd", LABELS | KL),
        ("vbd", LABELS | KL),
        ("kd-svd", LABELS | HINT | KL),
        ("kd-vbd", LABELS | HINT | KL),
        ("st-bsr", LABELS | HINT | KL | BSR),
        ("st-svd", LABELS | HINT | KL | BSR),
        ("st-vbd", LABELS | HINT | KL | BSR),
    ],
)
def test_every_method_has_the_papers_terms(name: str, terms: dict[str, str | None]):
    how = method(name)
    objective = how.objective(how.prepare(perceptron()), perceptron(seed=1), 10)
    assert {term: value.weight for term, value in objective.terms.items()} == terms
    assert how.needs_teacher == ("hint" in terms)


def test_the_total_is_the_weighted_sum_of_the_terms():
    settings = {"lambda_T": 0.7, "lambda_V": 3.0, "lambda_g": 0.05}
    how, examples = method("st-vbd", **settings), split(6)
    student = how.prepare(perceptron())
    objective = how.objective(student, perceptron(seed=1), 10)
    step = step_of(student, objective, examples, student(examples.images), time=100.0)
    total, terms = objective.loss(step)
    values = dict(zip(objective.terms, terms.tolist(), strict=True))
    expected = values["cross_entropy"] + 0.7 * values["hint"] + 3 * values["kl"] + 0.05 * values["bsr"]
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert all(value > 0 for value in values.values())


def test_the_gradient_is_weighted_too():
    parameter = torch.tensor([1.0, 2.0], requires_grad=True)
    objective = Objective(
        {"plain": Term(lambda step: step.logits.sum()), "weighted": Term(lambda s: s.logits.square().sum(), "w")}
    )
    step = LossInputs(parameter, torch.zeros(2), None, {}, {"w": torch.tensor(10.0)})
    total, terms = objective.loss(step)
    (gradient,) = torch.autograd.grad(total, parameter)
    assert gradient.tolist() == [1 + 20 * 1, 1 + 20 * 2]
    assert terms.tolist() == [3, 5]
    assert not terms.requires_grad


def test_cross_entropy_is_a_mean_over_the_batch():
    """A duplicated batch costs the same."""
    how, examples = method("vanilla"), split(6)
    student = how.prepare(perceptron())
    objective = how.objective(student, None, 10)
    logits = student(examples.images)
    step = step_of(student, objective, examples, logits)
    value = objective.terms["cross_entropy"].value(step)
    by_hand = -sum(F.log_softmax(logits, 1)[row, label] for row, label in enumerate(examples.labels)) / 6
    torch.testing.assert_close(value, by_hand)
    twice = LossInputs(logits.repeat(2, 1), step.labels.repeat(2), None, step.parameters, step.hyperparameters)
    torch.testing.assert_close(objective.terms["cross_entropy"].value(twice), value)


def test_the_hint_without_teacher_logits_is_a_mistake_of_the_program():
    objective = method("kd").objective(perceptron(), None, 10)
    step = LossInputs(normal(2, CLASSES, seed=0), torch.zeros(2), None, {}, {"T": torch.tensor(1.0)})
    with pytest.raises(AssertionError, match="no teacher logits"):
        objective.terms["hint"].value(step)


def test_two_parts_cannot_define_the_same_term():
    with pytest.raises(AssertionError, match="cross_entropy"):
        Method("twice", (CrossEntropy(), CrossEntropy())).objective(perceptron(), None, 10)


def test_an_unknown_part_is_named_with_its_nearest():
    with pytest.raises(UserError, match=r"method\.parts: 'hnt' is not known; did you mean 'hint'\?"):
        build_method({"name": "mine", "parts": ["labels", "hnt"]})


def test_a_setting_without_a_part_is_named_with_its_nearest():
    with pytest.raises(UserError, match=r"method: 'dropuot' is not known; did you mean 'dropout'\?"):
        build_method(
            {"name": "mine", "parts": ["labels", "dropout"], "dropuot": 0.3, "dropout": 0.1, "input_dropout": 0}
        )


@pytest.mark.parametrize(
    "wrong", [{"T": 0}, {"T": -1.0}, {"lambda_T": -1.0}, {"kl_dir": "tt"}, {"reduction": "sum"}, {"T": float("inf")}]
)
def test_values_out_of_range_are_refused(wrong: dict):
    with pytest.raises(UserError, match=rf"^method\.{next(iter(wrong))}: .*allowed: "):
        method("kd", **wrong)


def test_streams_differ_by_seed_and_purpose_and_repeat():
    seeds = {derived_seed(0, "order", 1), derived_seed(0, "order", 2), derived_seed(1, "order", 1), derived_seed(0)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    # The value is part of every published result: it must not change unnoticed.
    assert derived_seed(0, "order", 1) == 4374215849138048446
    assert torch.equal(torch.rand(3, generator=make_generator(0, "a")), torch.rand(3, generator=make_generator(0, "a")))


def test_seeded_puts_the_global_generator_back():
    before = torch.random.get_rng_state()
    first, again = (with_seed(5, "init", lambda: torch.rand(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, with_seed(6, "init", lambda: torch.rand(3)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeded_puts_the_global_generator_back_after_an_error():
    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        with_seed(5, "init", lambda: torch.rand(3) / (1 // 0))
    assert torch.equal(torch.random.get_rng_state(), before)
