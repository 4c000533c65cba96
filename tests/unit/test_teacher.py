"""Several teachers: what chooses them, what they are called, and what they answer together."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.miniature import CLASSES, dataset, perceptron, split
from torch import nn

from kdx.checks import check_method
from kdx.cli.help import train_help
from kdx.config.compose import compose_config, compose_sweep, from_hydra, to_hydra
from kdx.config.groups import load_groups
from kdx.errors import UserError
from kdx.logits import teacher_logits
from kdx.measure import measure
from kdx.measure.accuracy import error_percent, logits_of
from kdx.models.ensemble import MeanLogits, mean_logits
from kdx.runs.identity import run_id, teacher_id

BASE = ("method=noisy", "dataset=digits")


def test_the_mean_of_centred_logits_by_hand():
    first = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
    second = torch.tensor([[5.0, -1.0, 2.0], [9.0, 10.0, 11.0]])
    # Centred: (-2, -1, 3) and (3, -3, 0); (0, 0, 0) and (-1, 0, 1).
    expected = torch.tensor([[0.5, -2.0, 1.5], [-0.5, 0.0, 0.5]])
    torch.testing.assert_close(mean_logits([first, second]), expected)
    assert mean_logits([first]) is first


def test_it_is_the_geometric_mean_of_the_predictions():
    logits = [torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    geometric = torch.stack([each.softmax(1) for each in logits]).prod(0).pow(1 / 3)
    torch.testing.assert_close(mean_logits(logits).softmax(1), geometric / geometric.sum(1, keepdim=True))


def test_each_teacher_has_a_store_and_their_mean_is_what_both_networks_answer(tmp_path: Path):
    teachers = [perceptron(seed=1), perceptron(seed=2)]
    given = dataset(split(9))
    stored = mean_logits([teacher_logits(teacher, given, tmp_path) for teacher in teachers])
    assert len(list(tmp_path.glob("logits/*/manifest.json"))) == 2
    torch.testing.assert_close(stored, MeanLogits(teachers)(given.train.images).detach())


def test_the_mean_of_many_views_is_computed_in_float32(tmp_path: Path):
    teachers = [perceptron(seed=1), perceptron(seed=2), perceptron(seed=3)]
    given = dataset(replace(split(9), shift=1))
    rounded = [teacher_logits(teacher, given, tmp_path) for teacher in teachers]
    found = mean_logits(rounded)
    assert (found.dtype, found.shape) == (torch.float32, (81, CLASSES))
    assert torch.equal(found, mean_logits([each.float() for each in rounded]))
    exact = logits_of(MeanLogits(teachers), given.train).flatten(0, 1)
    assert (found - exact).abs().max() < 2.0**-10 * max(each.abs().max().item() for each in rounded)


def test_the_error_is_of_all_teachers_the_sizes_of_the_first():
    student, examples = perceptron(3), split(40)
    given = dataset(examples)
    first, second = perceptron(hidden=9, seed=1), perceptron(hidden=2, seed=2)
    alone = measure(student, first, given, torch.device("cpu"), 0).figures
    both = measure(student, first, given, torch.device("cpu"), 0, [second]).figures
    answers = [network(examples.images) for network in (first, second)]
    centred = torch.stack([each - each.mean(1, keepdim=True) for each in answers])
    wrong = (centred.sum(0).argmax(1) != examples.labels).sum().item()
    assert both["teacher_test_error_percent"] == pytest.approx(100 * wrong / 40)
    assert both["teacher_test_error_percent"] != alone["teacher_test_error_percent"]
    assert {**both, "teacher_test_error_percent": 0} == {**alone, "teacher_test_error_percent": 0}
    assert error_percent(MeanLogits([first]), given.test) == alone["teacher_test_error_percent"]


def test_the_user_types_teacher2():
    config = compose_config([*BASE, "teacher2=nin", "teacher2.trainer.epochs=3", "teacher3=lenet5-caffe"])
    assert [(key, teacher.name) for key, teacher in config.teachers.items()] == [
        ("teacher", "mlp-1200-1200"),
        ("teacher2", "nin"),
        ("teacher3", "lenet5-caffe"),
    ]
    assert config.teacher2 is not None
    assert config.teacher2.trainer.epochs == 3
    assert (
        compose_config(BASE).teachers.keys() == compose_config([*BASE, "teacher2=none"]).teachers.keys() == {"teacher"}
    )
    # A data set still chooses the first one.
    assert [t.name for t in compose_config(["dataset=svhn", "teacher2=nin"]).teachers.values()] == [
        "resnet56-v2",
        "nin",
    ]


def test_a_sweep_over_teachers():
    found = [list(job.config.teachers) for job in compose_sweep([*BASE, "teacher2=none,nin", "teacher3=none,vgg19"])]
    first, second, third = "teacher", "teacher2", "teacher3"
    assert found == [[first], [first, third], [first, second], [first, second, third]]


def test_the_words_of_the_user_and_hydras():
    words = ["teacher2=nin", "teacher2.seed=1", "teacher=nin", "seed=1"]
    assert to_hydra(words) == ["teacher@teacher2=nin", *words[1:]]
    assert from_hydra(to_hydra(words)) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher2=nni"], r"^teacher2: 'nni' is not known; did you mean 'nin'\? allowed: .*none"),
        (["teacher=none"], r"^teacher: 'none' is not known; "),
        (["teacher2.seed=3"], r"^teacher2\.seed=3: unknown key here; teacher2=alexnet-cifar or .* has it"),
        (
            ["teacher2=nin", "teacher2.seed=-3"],
            rf"^teacher2\.seed: -3 is not allowed; allowed: a whole number >= 0 and <= {2**63 - 1}$",
        ),
        (["teacher2=nin", "teacher2.trainer.lr=0"], r"^teacher2\.trainer\.lr: 0 is not allowed; allowed: a finite nu"),
        (["teacher2=nin", "teacher2.family=x"], r"^teacher2\.family: 'x' is not known; allowed: convnet"),
        (["teacher3=mlp-1200-1200"], r"^teacher3: 'mlp-1200-1200' is not allowed, since it is the very same as teache"),
        (["teacher2=lenet5-caffe", "teacher2.channels=[1,2,3]"], r"^teacher2\.channels: \[1, 2, 3\] is not allowed wi"),
        (
            ["teacher2=nin", "teacher2.trainer.patience=2", "dataset.validation=0"],
            r"^teacher2\.trainer\.patience: 2 is not allowed with dataset\.validation=0",
        ),
    ],
)
def test_refused(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        compose_config([*BASE, *words])


def test_an_absent_checkpoint_is_told_with_its_key():
    with pytest.raises(UserError, match=r"^teacher2\.checkpoint: 'nowhere' is not a file"):
        run_id(compose_config([*BASE, "teacher2=nin", "teacher2.checkpoint=nowhere"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=vanilla"], r"^teacher2: 'nin' is not allowed with method=vanilla, which learns from no teacher"),
        (["method=st-vbd"], r"^teacher2: 'nin' is not allowed with method\.bsr\.teacher=true, which is about the wei"),
    ],
)
def test_a_method_without_use_for_several_teachers_refuses_them(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        check_method(compose_config([*words, "teacher2=nin"]))
    check_method(compose_config(words))


def test_methods_with_a_use_for_several_teachers():
    for words in (["method=kd"], ["method=noisy"], ["method=st-vbd", "method.bsr.teacher=false"]):
        check_method(compose_config([*words, "teacher2=nin"]))


def test_ids_are_what_they_were():
    # Written down, so that a change of the schema that renames all runs is noticed.
    assert run_id(compose_config(["method=kd"])) == "6a9394dc2587"
    assert teacher_id(compose_config(["method=kd"])) == "ffecaacfc6f8"


def test_ids_see_further_teachers_and_a_teachers_does_not_see_its_slot():
    one, two = compose_config(BASE), compose_config([*BASE, "teacher2=nin"])
    assert len({run_id(one), run_id(two), run_id(compose_config([*BASE, "teacher2=nin", "teacher2.seed=1"]))}) == 3
    first, second = two.for_each_teacher()
    assert teacher_id(first) == teacher_id(one) == teacher_id(two)
    assert teacher_id(second) == teacher_id(compose_config([*BASE, "teacher=nin"]))
    assert [list(config.teachers) for config in (first, second)] == [["teacher"]] * 2


def test_help_names_the_choices_once():
    text = train_help([])
    assert text.count("Network in Network as a teacher") == 1
    assert "teacher2=\n  none (default)\n  or a choice of teacher=" in text
    assert "teacher2.name" not in text
    assert "teacher2.name" in train_help(["teacher2=nin"])


def test_further_teachers_have_the_choices_of_the_first_and_none():
    groups = load_groups()
    assert groups["teacher2"].choices.keys() == groups["teacher"].choices.keys() | {"none"}


def test_asking_them_leaves_them_as_they_are():
    teachers = [nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, CLASSES)) for _ in range(2)]
    before = copy.deepcopy([teacher.state_dict() for teacher in teachers])
    error_percent(MeanLogits(teachers), split(8))
    for teacher, state in zip(teachers, before, strict=True):
        assert teacher.training
        assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
