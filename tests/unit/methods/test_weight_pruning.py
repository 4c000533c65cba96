"""When weights are removed, and what is left of them at the end."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.masks import kept, no_bit_set
from helpers.miniature import CLASSES, SIDE, backend, dataset, named, perceptron, split
from helpers.trainings import comparable
from pydantic import ConfigDict
from torch import Tensor, nn

from kdx.checks import check_method
from kdx.config.compose import compose_config
from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Data, Split
from kdx.errors import UserError
from kdx.measure.accuracy import error_percent
from kdx.methods import build
from kdx.methods.fit import FitSpec, TrainingInputs
from kdx.methods.method import Method
from kdx.methods.modifier import Context, Modifier
from kdx.methods.procedure import FitResult, Procedure
from kdx.models.layers import NoisyDropout
from kdx.models.weights import weight_matrices
from kdx.runs.folder import RunFolder
from kdx.storage.tensors import load_tensors
from kdx.training.objective import LossInputs, Term

STEPS_PER_EPOCH, TRAINER = 4, TrainerSettings(
    epochs=2, batch_size=3, lr=1e-2, hold=0.5, patience=None, checkpoint_seconds=1e9
)  # fmt: skip
TOTAL = 36 * 5 + 5 * CLASSES
IP = {"iterations": 3, "retrain_epochs": 1, "dropout": 0.3}
GRADUAL = {"steps": 3, "epochs_per_step": 1, "retrain_epochs": 2, "sparsity": 0.75}


def how(name: str, **settings: Any) -> tuple[Method, Procedure]:
    return build({**compose_config([f"method={name}"]).method, **settings})


def spec(folder: Path, **changes: Any) -> FitSpec:
    return replace(FitSpec("miniature", TRAINER, 0, RunFolder(folder)), **changes)


def run(
    folder: Path,
    name: str,
    data: Data | None = None,
    network: nn.Sequential | None = None,
    also: tuple[Modifier, ...] = (),
    changes: Mapping[str, Any] | None = None,
    **settings: Any,
) -> FitResult:
    method, procedure = how(name, **settings)
    method = replace(method, modifiers=(*method.modifiers, *also))
    inputs = TrainingInputs(data or dataset(split(12)))
    folder.mkdir(exist_ok=True, parents=True)
    return procedure.run(network or perceptron(), method, inputs, spec(folder, **(changes or {})), backend())


def stage(folder: Path, name: str) -> dict[str, Tensor]:
    """What the last checkpoint of a fit holds: mask and weight of each layer."""
    tensors, _ = load_tensors(folder / f"checkpoint-{name}.safetensors")
    return tensors


def masks(folder: Path, name: str) -> dict[str, Tensor]:
    """Of every layer; one without zeros has no mask."""
    tensors = stage(folder, name)
    whole = {layer: torch.ones_like(tensors[f"parameter/{layer}.weight"], dtype=torch.bool) for layer in ("fc1", "fc2")}
    return {layer: tensors.get(f"buffer/{layer}.mask", mask) for layer, mask in whole.items()}


def test_iterative_pruning_keeps_ever_smaller_fractions(tmp_path: Path):
    outcome = run(tmp_path, "ip", **IP, keep=0.2)
    found = [masks(tmp_path, name) for name in ("dense", "retrain-1", "retrain-2", "retrain-3")]
    assert [kept(each) for each in found] == [TOTAL, round(TOTAL * 0.2 ** (1 / 3)), round(TOTAL * 0.2 ** (2 / 3)), 40]
    assert_masks_shrink_and_the_result_is_theirs(found, outcome)
    assert outcome.figures["pruned_sparsity_percent"] == pytest.approx(80)
    # Survivors keep their weights: retraining starts where the dense training ended, at a tenth of the rate.
    dense, first = stage(tmp_path, "dense")["parameter/fc1.weight"], stage(tmp_path, "retrain-1")
    moved = (first["parameter/fc1.weight"] - dense)[found[1]["fc1"]].abs()
    assert 0 < moved.max() <= STEPS_PER_EPOCH * 1e-3 * 1.01
    assert [row["stage"] for row in outcome.progress.history] == [1, 1, 2, 3, 4]
    assert [row["lr"] for row in outcome.progress.history][2:] == pytest.approx([1e-3 * 0.5] * 3)


def test_a_fixed_quality_factor(tmp_path: Path):
    outcome = run(tmp_path, "ip", **IP, keep=None, q=0.5)
    for before, after in (("dense", "retrain-1"), ("retrain-1", "retrain-2"), ("retrain-2", "retrain-3")):
        weights = {layer: stage(tmp_path, before)[f"parameter/{layer}.weight"] for layer in ("fc1", "fc2")}
        for layer, weight in weights.items():
            threshold = 0.5 * weight[weight != 0].numpy().std()
            assert torch.equal(masks(tmp_path, after)[layer], weight.abs() >= threshold)
    assert outcome.figures["pruned_q"] == 0.5
    assert 0 < kept(masks(tmp_path, "retrain-3")) < kept(masks(tmp_path, "retrain-1")) < TOTAL


def test_gradual_pruning_follows_the_schedule_in_every_layer(tmp_path: Path):
    outcome = run(tmp_path, "prune", **GRADUAL)
    found = [masks(tmp_path, name) for name in ("dense", *(f"sparsity-0.75-step-{step}" for step in (1, 2, 3)))]
    # 0.75 (1 - (1 - t/3)^3) for t = 1, 2, 3 is 0.75 times 19/27, 26/27 and 1.
    shares = [1 - 0.75 * share for share in (0, 19 / 27, 26 / 27, 1)]
    assert [int(each["fc1"].sum()) for each in found] == [round(180 * share) for share in shares]
    assert [int(each["fc2"].sum()) for each in found] == [round(20 * share) for share in shares]
    assert_masks_shrink_and_the_result_is_theirs(found, outcome)
    assert [row["stage"] for row in outcome.progress.history] == [1, 1, 2, 3, 4, 4]
    assert outcome.figures == {"pruned_sparsity_percent": 75.0}
    assert not (tmp_path / "pruning.csv").exists()


@pytest.mark.parametrize("schedule", ["hold", "one-cycle"])
def test_the_rate_of_gradual_pruning_falls_in_the_last_fit_only(tmp_path: Path, schedule: str):
    trainer = TRAINER.model_copy(update={"schedule": schedule, "peak": 0.5})
    rates = [row["lr"] for row in run(tmp_path, "prune", changes={"trainer": trainer}, **GRADUAL).progress.history]
    assert rates[2:4] == [1e-2, 1e-2]
    # The last step of an epoch has a quarter of the way left: of half a cycle, which is an epoch.
    assert rates[5] == pytest.approx(1e-2 / 4)
    assert rates[4] == pytest.approx(1e-2)


def assert_masks_shrink_and_the_result_is_theirs(found: list[dict[str, Tensor]], outcome: FitResult) -> None:
    for earlier, later in pairwise(found):
        assert all((later[name] <= earlier[name]).all() for name in later)
    for name, weight in weight_matrices(outcome.network).items():
        assert no_bit_set(weight[~found[-1][name]])
        assert weight[found[-1][name]].all()


def test_trained_weights_are_pruned_at_once_and_their_zeros_stay(tmp_path: Path):
    network = perceptron()
    with torch.no_grad():
        network.get_parameter("fc1.weight")[:, :18] = 0.0
    for name, settings in (("ip", IP | {"keep": 0.4}), ("prune", GRADUAL)):
        outcome = run(tmp_path / name, name, network=perceptron_like(network), changes={"pretrained": True}, **settings)
        assert not (tmp_path / name / "checkpoint-dense.safetensors").exists()
        assert no_bit_set(weight_matrices(outcome.network)["fc1"][:, :18])
        assert len(outcome.progress.history) == (3 if name == "ip" else 4)
    # The schedule begins at the sparsity that is there: 0.5 in fc1, 0 in fc2.
    first = masks(tmp_path / "prune", "sparsity-0.75-step-1")
    assert int(first["fc1"].sum()) == round(180 * (0.25 + 0.25 * 8 / 27))
    assert int(first["fc2"].sum()) == round(20 * (0.25 + 0.75 * 8 / 27))


def perceptron_like(network: nn.Module) -> nn.Sequential:
    copy = perceptron(seed=9)
    copy.load_state_dict(network.state_dict())
    return copy


class Spy(Modifier):
    """Calls `act` in every step, and `look` with every student that a fit has prepared."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    act: Callable[[], None] = lambda: None
    look: Callable[[nn.Module], None] = lambda student: None

    def terms(self, context: Context) -> dict[str, Term]:
        self.look(context.student)

        def nothing(step: LossInputs) -> Tensor:
            self.act()
            return step.logits.sum() * 0

        return {"spy": Term(nothing)}


@pytest.mark.parametrize(("name", "settings"), [("ip", IP | {"keep": 0.2}), ("prune", GRADUAL)])
def test_stopped_between_and_within_fits_and_continued_is_uninterrupted(
    tmp_path: Path, name: str, settings: dict[str, Any]
):
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    whole = run(tmp_path / "whole", name, also=(Spy(act=count),), **settings)
    total = steps

    def stop_at(last: int) -> Callable[[], None]:
        seen = 0

        def act() -> None:
            nonlocal seen
            seen += 1
            if seen > last:
                raise MemoryError

        return act

    eager_saver = {"trainer": TRAINER.model_copy(update={"checkpoint_seconds": 0.0})}
    # At the end of the dense fit (2 epochs), then at once in the middle of the second fit, then in the third.
    for last in (2 * STEPS_PER_EPOCH, 2, STEPS_PER_EPOCH):
        with pytest.raises(MemoryError):
            run(tmp_path / "cut", name, also=(Spy(act=stop_at(last)),), changes=eager_saver, **settings)
    steps = 0
    outcome = run(tmp_path / "cut", name, also=(Spy(act=count),), changes=eager_saver, **settings)
    # No step was done twice but those that fell between a checkpoint and the stop, none here.
    assert steps == total - (2 * STEPS_PER_EPOCH + 2 + STEPS_PER_EPOCH)
    for (key, one), two in zip(outcome.network.state_dict().items(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    assert comparable(outcome.progress) == comparable(whole.progress)
    assert outcome.figures == whole.figures


def test_every_fit_has_the_architectures_own_dropout(tmp_path: Path):
    layers = {
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(SIDE**2, 5),
        "fc1_relu": nn.ReLU(),
        "fc1_dropout": nn.Dropout(0.5),
        "fc2": nn.Linear(5, CLASSES),
    }
    found: list[list[float]] = []

    def look(student: nn.Module) -> None:
        found.append([layer.rate for layer in student.modules() if isinstance(layer, NoisyDropout)])

    settings = IP | {"input_dropout": 0.1, "iterations": 2, "keep": 0.25}
    run(tmp_path, "ip", network=named(layers, 0), also=(Spy(look=look),), **settings)
    shares = [masks(tmp_path, name)["fc1"].float().mean().item() for name in ("dense", "retrain-1", "retrain-2")]
    assert found == [pytest.approx([0.1, 0.3 * share**0.5, 0.5 * share**0.5]) for share in shares]
    assert shares[0] == 1 > shares[1] > shares[2]


LADDER = {"ladder": [0.3, 0.6, 0.98], "steps": 2, "epochs_per_step": 1, "retrain_epochs": 1}


def learnable(test: Split) -> Data:
    """The validation samples are those that are learnt, so that pruning a lot shows there."""
    examples = split(12)
    return Data("miniature", examples, examples, test, CLASSES, "pixels")


def test_the_ladder_picks_by_validation_and_not_by_test(tmp_path: Path):
    test = split(12, seed=50)
    rising = {"trainer": TRAINER.model_copy(update={"epochs": 60})}

    def pruned(sparsity: float) -> FitResult:
        how_far = LADDER | {"sparsity": sparsity, "tolerance": None}
        return run(tmp_path / f"{sparsity}", "prune", learnable(test), changes=rising, **how_far)

    rungs = {sparsity: pruned(sparsity) for sparsity in LADDER["ladder"]}
    dense = perceptron()
    dense.load_state_dict({name: stage(tmp_path / "0.6", "dense")[f"parameter/{name}"] for name in dense.state_dict()})
    errors = {sparsity: error_percent(rung.network, split(12)) for sparsity, rung in rungs.items()}
    test_errors = {sparsity: error_percent(rung.network, test) for sparsity, rung in rungs.items()}
    tolerance = errors[0.6] - error_percent(dense, split(12)) + 1.0
    # What makes this a test: validation refuses the last rung, the test set would take it.
    assert errors[0.98] > errors[0.6] + 1.0
    assert test_errors[0.98] <= error_percent(dense, test) + tolerance

    settings = LADDER | {"sparsity": None, "tolerance": tolerance}
    outcome = run(tmp_path / "ladder", "prune", learnable(test), changes=rising, **settings)
    assert outcome.figures == {"pruned_sparsity_percent": 60.0}
    for name, weight in weight_matrices(rungs[0.6].network).items():
        assert torch.equal(weight_matrices(outcome.network)[name], weight)
    with (tmp_path / "ladder" / "pruning.csv").open(newline="") as file:
        rows = {float(row["sparsity_percent"]): float(row["val_error_percent"]) for row in csv.DictReader(file)}
    expected = {0.0: error_percent(dense, split(12))} | {100 * key: error for key, error in errors.items()}
    assert rows == pytest.approx(expected)


def test_where_no_rung_is_tolerated_the_dense_network_is_the_result(tmp_path: Path, caplog):
    settings = {"sparsity": None, "tolerance": 0.0, "ladder": [0.98], "steps": 1, "retrain_epochs": 1}
    rising = {"trainer": TRAINER.model_copy(update={"epochs": 60})}
    outcome = run(tmp_path, "prune", learnable(split(4)), changes=rising, **settings)
    assert outcome.figures == {"pruned_sparsity_percent": 0.0}
    assert all(weight.all() for weight in weight_matrices(outcome.network).values())
    assert "nothing is pruned" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("method=ip method.q=1", r"^method: exactly one of keep and q may be a number; keep is 0\.133, q is 1"),
        ("method=ip method.keep=null", r"^method: exactly one of keep and q .* keep is None, q is None"),
        ("method=ip method.keep=1.5", r"^method\.keep: 1\.5 is not allowed; allowed: a finite number > 0 and <= 1"),
        ("method=prune method.tolerance=1", r"^method: exactly one of sparsity and tolerance .* tolerance is 1"),
        ("method=prune method.ladder=[0.5,0.5]", r"^method: ladder must rise from one number to the next"),
        (
            "method=prune method.sparsity=1",
            r"^method\.sparsity: 1 is not allowed; allowed: a finite number > 0 and < 1",
        ),
        (
            "method=prune method.sparsity=null method.tolerance=1 dataset.validation=0",
            r"^method\.tolerance: 1 is not allowed with dataset\.validation=0, .*; allowed: null$",
        ),
    ],
)
def test_refused(words: str, message: str):
    with pytest.raises(UserError, match=message):
        check_method(compose_config(words.split()))
