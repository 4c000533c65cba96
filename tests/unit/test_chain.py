"""Which generations a chain trains and keeps, by validation errors from a table; and what it refuses to start with."""

from collections.abc import Mapping
from copy import deepcopy
from io import StringIO
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import CLASSES, method, perceptron, split
from rich.console import Console

from kdx.chain import Generation, mean_loss, run_chain, run_generations
from kdx.checks import check_method
from kdx.cli.run_tables import print_chain
from kdx.config.compose import compose_config
from kdx.config.schema import Config
from kdx.data import load_data
from kdx.errors import Interrupted, UserError
from kdx.experiment import run
from kdx.measure.accuracy import within_tolerance
from kdx.methods import build
from kdx.methods.iterative_distillation import IterativeDistillation
from kdx.runs.folder import run_folder
from kdx.runs.reader import read_lines
from kdx.storage.tensors import load_tensors

Pair = tuple[int, int | None]
IKD = ("method=ikd", "dataset=digits", "teacher.hidden=[16]", "method.generations=2")


def chain(**settings: object) -> IterativeDistillation:
    procedure = build(compose_config(["method=ikd"]).method | settings)[1]
    assert isinstance(procedure, IterativeDistillation)
    return procedure


def member(generation: int, teacher: int | None, val_error: float | None, val_loss: float | None = None) -> Generation:
    # The test errors order the candidates the other way round: they must not matter.
    return Generation(
        generation, teacher, val_error, -(val_error or 0.0), 10, 1.0, Path("weights"), Path("run"), val_loss
    )


def pairs(members: list[Generation]) -> list[Pair]:
    return [(one.generation, one.teacher) for one in members]


def outcome(settings: IterativeDistillation, errors: Mapping[Pair, float | None]) -> tuple[list[Pair], list[Pair]]:
    accepted, trained = run_generations(
        settings,
        member(0, None, errors[0, None]),
        lambda generation, teacher: member(generation, teacher.generation, errors[generation, teacher.generation]),
    )
    return pairs(accepted), pairs(trained)


def test_a_parental_chain_learns_from_the_generation_before():
    # Without a validation split there is no error, and none is needed.
    errors = dict.fromkeys([(0, None), (1, 0), (2, 1), (3, 2)])
    assert outcome(chain(generations=3), errors) == (list(errors), list(errors))


def test_an_ancestral_chain_keeps_the_lowest_validation_error_and_the_earlier_of_equals():
    errors = {(0, None): 1.0, (1, 0): 2.0, (2, 0): 5.0, (2, 1): 4.0, (3, 0): 7.0, (3, 1): 6.0, (3, 2): 6.0}
    accepted, trained = outcome(chain(generations=3, teacher="ancestral"), errors)
    assert accepted == [(0, None), (1, 0), (2, 1), (3, 1)]
    assert trained == list(errors)


def test_an_ancestral_chain_can_keep_the_lowest_loss_while_its_tolerance_stays_one_of_errors():
    errors = {(0, None): 1.0, (1, 0): 1.0, (2, 0): 2.0, (2, 1): 1.0}
    losses = {(1, 0): 0.5, (2, 0): 0.2, (2, 1): 0.3}

    def train(generation: int, teacher: Generation) -> Generation:
        pair = generation, teacher.generation
        return member(*pair, errors[pair], losses[pair])

    for tolerance, expected in ((None, [(0, None), (1, 0), (2, 0)]), (0.5, [(0, None), (1, 0)])):
        settings = chain(generations=2, teacher="ancestral", select="loss", tolerance=tolerance)
        assert pairs(run_generations(settings, member(0, None, 1.0), train)[0]) == expected


@pytest.mark.parametrize("count", [1, 7])
def test_the_loss_of_a_candidate_is_equation_1(count: int):
    """IKD eq. 1 in float64, by the entropies: (1 - alpha) CE + 2 T^2 alpha KL(teacher||student), means over images."""
    alpha, T = 0.7, 20.0
    student, teacher, images = perceptron(seed=1), perceptron(seed=2), split(count)
    # Dropout would make the loss another one each time.
    student = torch.nn.Sequential(student, torch.nn.Dropout(0.5)).train()
    objective = method("kd-mixture", alpha=alpha, T=T).objective(student, teacher, 100)
    found = mean_loss(objective, student, teacher, images)

    expected = 0.0
    for image, label in zip(images.images, images.labels.tolist(), strict=True):
        own, taught = (deepcopy(net).eval().double()(image[None].double())[0] for net in (student, teacher))
        p, q = (torch.exp(z / T) / torch.exp(z / T).sum() for z in (taught, own))
        hint = 2 * T**2 * sum(p[k] * (p[k].log() - q[k].log()) for k in range(CLASSES))
        expected += ((1 - alpha) * -(own.exp() / own.exp().sum())[label].log() + alpha * hint).item() / count
    assert found == pytest.approx(expected, rel=1e-4)
    assert mean_loss(objective, student, teacher, images) == found
    assert student.training


def test_the_loss_of_a_candidate_is_the_one_that_it_was_trained_by(tmp_path: Path):
    """With its labels smoothed."""
    short = ("trainer.epochs=1", "teacher.trainer.epochs=1", "device.threads=1", "device.latency_seconds=0")
    words = ("method.generations=1", "method.teacher=ancestral", "method.select=loss", "trainer.label_smoothing=0.2")
    folder = run(compose_config([*IKD[:3], *words, *short, "device.compile=false", f"outputs={tmp_path}"]))
    (row,) = [row for row in read_lines(folder / "chain.csv") if row["generation"] == "1"]
    (teacher,) = tmp_path.glob("teachers/*/teacher.safetensors")
    validation = load_data(compose_config(IKD).dataset).validation
    assert validation is not None

    def logits(weights: Path) -> torch.Tensor:
        tensors, _ = load_tensors(weights)
        names = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        matrix, bias, last, last_bias = (tensors[name].double() for name in names)
        return F.linear(F.linear(validation.images.double().flatten(1), matrix, bias).relu(), last, last_bias)

    own, taught = logits(tmp_path / row["run"] / "student.safetensors"), logits(teacher)
    hint = F.kl_div((own / 20).log_softmax(1), (taught / 20).softmax(1), reduction="batchmean")
    expected = 0.3 * F.cross_entropy(own, validation.labels, label_smoothing=0.2) + 0.7 * 2 * 20**2 * hint
    assert float(row["val_loss"]) == pytest.approx(expected.item(), rel=1e-4)


def test_four_ancestral_generations_are_ten_trainings():
    errors = {(i, j): 0.0 for i in range(5) for j in range(i)} | {(0, None): 0.0}
    _, trained = outcome(chain(teacher="ancestral"), errors)
    assert len(trained) - 1 == 10


@pytest.mark.parametrize(
    ("tolerance", "kept"),
    [(0.0, [0, 1]), (0.5, [0, 1, 2]), (0.4, [0, 1]), (2.0, [0, 1, 2, 3]), (None, [0, 1, 2, 3])],
)
def test_the_tolerance_is_one_sided_and_relative_to_the_last_accepted(tolerance: float | None, kept: list[int]):
    # Two points better, half a point worse, two points worse: less than the tolerance only one by one.
    errors = {(0, None): 3.0, (1, 0): 1.0, (2, 1): 1.5, (3, 2): 3.5}
    accepted, trained = outcome(chain(generations=3, tolerance=tolerance), errors)
    assert [generation for generation, _ in accepted] == kept
    # The generation that ends the chain was trained too, none after it.
    assert len(trained) == min(len(kept) + 1, 4)


@pytest.mark.parametrize("images", [50, 5000, 7001, 10_000_000])
def test_the_tolerance_is_a_number_of_images_however_percentages_round(images: int):
    """As many more wrong images as the tolerance says are tolerated and one more is not, whatever was wrong before."""
    more = 5
    # As a user writes it, 0.1 for five images of 5,000; of 7,001 it has no end and is cut.
    tolerance = float(f"{100 * more / images:.15g}")
    settings = chain(generations=2, tolerance=tolerance)
    for wrong in range(min(400, images - more)):
        before, within, beyond = (100.0 * count / images for count in (wrong, wrong + more, wrong + more + 1))
        assert within_tolerance(within, before, tolerance), wrong
        assert not within_tolerance(beyond, before, tolerance), wrong
        kept, _ = outcome(settings, {(0, None): before, (1, 0): within, (2, 1): 1000.0})
        assert kept == [(0, None), (1, 0)]


def test_an_ancestral_chain_ends_only_if_its_best_candidate_is_too_bad():
    errors = {(0, None): 1.0, (1, 0): 1.0, (2, 0): 9.0, (2, 1): 1.0, (3, 0): 9.0, (3, 1): 8.0, (3, 2): 8.5}
    accepted, trained = outcome(chain(generations=4, teacher="ancestral", tolerance=1.0), errors)
    assert accepted == [(0, None), (1, 0), (2, 1)]
    assert trained == list(errors)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.refine=blocks"], "method.refine: 'blocks' is not allowed with mlp-1200-1200, of family mlp; allowed"),
        (["method.generations=5"], "method.generations: 5 is not allowed with method.refine=filters and mlp-1200-"),
        (["method.generations=0"], "method.generations: 0 is not allowed; allowed: a whole number >= 1"),
        (["method.tolerance=-1"], "method.tolerance: -1 is not allowed; allowed: "),
        (["method.teacher=parent"], "method.teacher: 'parent' is not allowed; did you mean 'parental'? allowed: "),
        (["method.refine=filter"], "method.refine: 'filter' is not allowed; did you mean 'filters'? allowed: one of"),
        (["method.member=kd"], "method.member: 'kd' is not allowed; allowed: kd-mixture"),
        (["method.alpha=1.5"], "method.alpha: 1.5 is not allowed; allowed: a finite number >= 0 and <= 1"),
        (["dataset.validation=0", "method.teacher=ancestral"], "method.teacher: 'ancestral' is not allowed with datas"),
        (
            ["dataset.validation=0", "method.tolerance=1"],
            "method.tolerance: 1.0 is not allowed with dataset.validation",
        ),
        (
            ["dataset.validation=0", "method.prune=true"],
            "method.pruning.tolerance: 0.1 is not allowed with dataset.validation=0",
        ),
        (["method.pruning.sparsity=0.5"], "method.pruning: exactly one of sparsity and tolerance may be a number; "),
        (
            ["student.checkpoint=weights"],
            "student.checkpoint: 'weights' is not allowed with a chain of runs, whose networ",
        ),
        (["method.pruning.steps=0"], "method.pruning.steps: 0 is not allowed; allowed: a whole number >= 1"),
    ],
)
def test_refused_before_anything_runs(words: list[str], message: str):
    typed = {word.partition("=")[0] for word in words}
    usual = [word for word in IKD if word.partition("=")[0] not in typed]
    with pytest.raises(UserError) as caught:
        check_method(compose_config([*usual, *words]))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_allowed_without_validation():
    check_method(compose_config([*IKD, "dataset.validation=0"]))
    fixed = ("method.pruning.tolerance=null", "method.pruning.sparsity=0.5")
    check_method(compose_config([*IKD, "dataset.validation=0", "method.prune=true", *fixed]))


def test_a_chain_has_no_student_of_its_own_and_nothing_else_has_the_chains():
    with pytest.raises(
        UserError, match=r"^student: 'lenet-300-100' is not allowed with method=ikd, .* allowed: refined$"
    ):
        compose_config([*IKD, "student=lenet-300-100"])
    with pytest.raises(UserError, match=r"^student: 'refined' is not allowed with method=kd, .* method=ikd$"):
        compose_config(["student=refined", "method=kd"])


@pytest.mark.parametrize("method", ["ikd", "paper/ikd"])
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_the_method_chooses_the_student_whatever_the_data_set_chooses(method: str, dataset: str):
    config = compose_config([f"dataset={dataset}", f"method={method}"])
    assert config.student.family == "refined"
    assert run_folder(config).path.parent == Path(config.outputs, "runs", dataset, "refined", "ikd")


def test_every_run_is_one_that_a_user_could_type(tmp_path: Path):
    """The runs that the chain asks for, up to the first that is interrupted."""
    asked: list[Config] = []

    def run(config: Config) -> Path:
        asked.append(config)
        raise Interrupted

    words = [*IKD, f"outputs={tmp_path}", "teacher.trainer.epochs=1", "device.latency_seconds=0"]
    config = compose_config(words)
    with pytest.raises(Interrupted):
        run_chain(config, chain(generations=2), run_folder(config), run)
    typed = compose_config(
        [*words[1:3], *words[4:], "method=kd-mixture", "student=mlp-1200-1200", "student.hidden=[8]"]
    )
    (first,) = asked
    assert first.student.name == "mlp-1200-1200-filters-1"
    assert first == typed.model_copy(update={"student": first.student})
    assert first.student.model_dump() == typed.student.model_dump() | {"name": first.student.name}


@pytest.mark.parametrize(
    ("losses", "decides"), [(("", ""), "error"), (("0.25", "0.125"), "loss, which was minimised,")]
)
def test_the_table_is_told_in_80_columns(tmp_path: Path, losses: tuple[str, str], decides: str):
    (tmp_path / "chain.csv").write_text(
        "generation,teacher,accepted,val_error_percent,val_loss,test_error_percent,parameters,C,run\n"
        "0,,yes,,,5.5,139611210,1.0,\n"
        f"1,0,yes,4.25,{losses[0]},6.0,34918210,3.998,runs/mnist/vgg19-filters-1/kd-mixture/fb6a5fae6976\n"
        f"2,1,no,9.0,{losses[1]},6.0,548000,254.76,runs/mnist/vgg19-filters-2/kd-mixture/024838d17602\n"
    )
    screen = Console(record=True, width=80, file=StringIO())
    print_chain(screen, tmp_path)
    text = screen.export_text()
    lines = [line.split() for line in text.splitlines()]
    loss = [[f"{float(each):.4f}"] if each else [] for each in losses]
    assert ["M_0", "-", "5.50", "139,611,210", "1.00x"] in lines
    assert ["M_1", "<-", "M_0", *loss[0], "4.25", "6.00", "34,918,210", "4.00x", "fb6a5fae6976"] in lines
    assert ["M_2", "<-", "M_1", "refused", *loss[1], "9.00", "6.00", "548,000", "254.8x", "024838d17602"] in lines
    assert f"The {decides} over validation images alone decides" in " ".join(text.split())


def test_a_run_that_is_no_chain_has_no_such_table(tmp_path: Path):
    screen = Console(record=True, file=StringIO())
    print_chain(screen, tmp_path)
    assert screen.export_text() == ""
