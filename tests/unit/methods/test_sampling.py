"""SGLD as a run: which samples are kept, what the ensemble answers, and what an interruption leaves."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import dataset, engine, method, normal, perceptron, split
from torch import nn

from kdx.compose import check_method, single
from kdx.config import TrainerSettings
from kdx.errors import UserError
from kdx.fit import Lesson, Plan
from kdx.measure import measure
from kdx.measure.footprint import dense_bytes, parameter_count
from kdx.models.ensemble import Ensemble
from kdx.procedures.procedure import Outcome
from kdx.procedures.sampling import Sampling
from kdx.runs import RunFolder
from kdx.weights import emptied, load_weights, save_weights

EPOCHS, BURN_IN, SAMPLES = 6, 2, 2


def plan(folder: Path) -> Plan:
    trainer = TrainerSettings(epochs=EPOCHS, batch_size=4, lr=1.0, hold=0.5, patience=None, checkpoint_seconds=0.0)
    return Plan("miniature", trainer, 0, RunFolder(folder))


def sampled(folder: Path, given: Lesson | None = None) -> Outcome:
    lesson = given or Lesson(dataset(split(13)))
    how = method("sgld", eta=1e-3)
    return Sampling(burn_in=BURN_IN, samples=SAMPLES).run(perceptron(), how, lesson, plan(folder), engine())


def test_the_answer_is_the_averaged_prediction():
    members, images = [perceptron(seed=seed) for seed in range(3)], normal(5, 1, 6, 6, seed=9)
    expected = sum(F.softmax(member(images).double(), dim=1) for member in members) / 3
    answer = Ensemble(members)(images)
    torch.testing.assert_close(answer.exp().double(), expected)
    torch.testing.assert_close(answer.exp().sum(dim=1), torch.ones(5))
    one = Ensemble(members[:1])(images)
    torch.testing.assert_close(one, F.log_softmax(members[0](images), dim=1))


def test_an_ensemble_of_confident_networks_does_not_overflow():
    member = perceptron()
    with torch.no_grad():
        member.fc2.weight.mul_(1e4)
    assert Ensemble([member, perceptron(seed=1)])(normal(50, 1, 6, 6, seed=1)).isfinite().all()


def test_an_ensemble_is_measured_saved_and_loaded_as_all_its_members(tmp_path: Path):
    member = perceptron()
    with torch.no_grad():
        member.fc1.weight[:, :10] = 0.0
    ensemble = Ensemble([member, perceptron(seed=1), perceptron(seed=2)])
    measured = measure(ensemble, member, dataset(split(20)), torch.device("cpu"), latency_seconds=0.05)
    names = [f"member{number}.fc{layer}" for number in (1, 2, 3) for layer in (1, 2)]
    assert [row.layer for row in measured.layers] == names
    assert measured.figures["parameters"] == 3 * parameter_count(member)
    assert measured.figures["dense_bytes"] == 3 * dense_bytes(member)
    assert measured.figures["multiplications"] == 3 * (36 * 5 + 5 * 4)
    assert measured.figures["neurons"] == 3 * (36 + 5)
    assert measured.figures["nonzero_neurons_by_layer"] == "26-5-36-5-36-5"
    assert measured.figures["latency_ms"] is not None
    path, images = tmp_path / "student.safetensors", normal(5, 1, 6, 6, seed=9)
    save_weights(path, ensemble)
    assert torch.equal(load_weights(path, emptied(ensemble))(images), ensemble(images))


@pytest.mark.parametrize(
    ("epochs", "burn_in", "samples", "kept"),
    [(100, None, 10, [55, 60, 65, 70, 75, 80, 85, 90, 95, 100]), (6, 2, 2, [4, 6]), (3, 1, 2, [2, 3]), (5, 0, 1, [5])],
)
def test_samples_are_evenly_spaced_after_the_burn_in(epochs: int, burn_in: int | None, samples: int, kept: list[int]):
    assert Sampling(burn_in=burn_in, samples=samples).epochs_kept(epochs) == kept


@pytest.mark.parametrize(
    ("burn_in", "samples", "message"),
    [(3, 2, "method.samples: 2 .* allowed: 1 to 1"), (4, 1, "method.burn_in: 4 .* allowed: less than that")],
)
def test_a_run_too_short_for_its_samples_is_refused(burn_in: int, samples: int, message: str):
    with pytest.raises(UserError, match=message):
        Sampling(burn_in=burn_in, samples=samples).epochs_kept(4)


def test_there_is_no_best_epoch_to_wait_for():
    with pytest.raises(UserError, match=r"^trainer\.patience: 3 is not allowed with method=sgld, which keeps samples"):
        check_method(single(["method=sgld", "trainer.patience=3"]))


@pytest.mark.parametrize("name", ["sgld", "bdk"])
def test_samples_are_not_averaged(name: str):
    with pytest.raises(
        UserError, match=rf"^trainer\.average: 0\.9 is not allowed with method={name}, .*; allowed: null$"
    ):
        check_method(single([f"method={name}", "trainer.average=0.9"]))


class Stopped(Exception): ...


class StoppingAfter:
    """Stands for a figure of the history that is taken after so many epochs, and not after the next."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def __call__(self, *_arguments: object) -> float:
        if not self.left:
            raise Stopped
        self.left -= 1
        return 0.0


@pytest.mark.parametrize("epochs", [1, 3, 4, 5])
def test_stopped_between_samples_and_continued_is_uninterrupted(tmp_path: Path, epochs: int, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = sampled(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("kdx.fit.percent_zero", StoppingAfter(epochs))
        with pytest.raises(Stopped):
            sampled(tmp_path / "stopped")
    # The sample of an epoch is written before the epoch's figures are taken.
    assert (tmp_path / "stopped" / "checkpoint-sample4.safetensors").exists() == (epochs >= 3)
    continued = sampled(tmp_path / "stopped")
    assert _equal(whole.network, continued.network)
    assert [row["cross_entropy"] for row in whole.progress.history] == [
        row["cross_entropy"] for row in continued.progress.history
    ]


def test_the_members_are_the_samples_of_their_epochs(tmp_path: Path):
    outcome = sampled(tmp_path)
    assert isinstance(outcome.network, Ensemble)
    members = list(outcome.network.children())
    assert len(members) == SAMPLES
    assert not _equal(members[0], members[1])
    # A run that ends where the first sample was drawn ends with that sample.
    (tmp_path / "shorter").mkdir()
    shorter = plan(tmp_path / "shorter").at("", epochs=4)
    first = Sampling(burn_in=BURN_IN, samples=1).run(
        perceptron(), method("sgld", eta=1e-3), Lesson(dataset(split(13))), shorter, engine()
    )
    assert _equal(next(first.network.children()), members[0])


def _equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
