"""Models that are trained together end as they would alone, whatever they differ in; one that fails fails alone."""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.miniature import CLASSES, backend, dataset, generator, method, normal, perceptron, split
from helpers.networks import IMAGE, small
from torch import Tensor, nn

import kdx.training.stacked as stacking
from kdx.config.compose import compose_config
from kdx.data.dataset import Split
from kdx.errors import Diverged, Interrupted
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.methods.procedure import FitResult
from kdx.runs.folder import RunFolder
from kdx.sweep.fused_runs import Fit, fit_fused
from kdx.training.checkpoint import Progress
from kdx.training.noise import NoiseSource
from kdx.training.stacked import FusionMode
from kdx.training.state import State, stacked
from kdx.training.step import Batch, Stacking, make_step

WAYS: list[FusionMode] = ["stacked", "loop"]
BOTH_WAYS = pytest.mark.parametrize("way", WAYS)


@dataclass(frozen=True)
class Model:
    """What one of the models that are trained together has of its own."""

    method: str
    settings: Mapping[str, Any]
    seed: int = 0
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def fit(self, folder: Path, build: Callable[[int], nn.Module]) -> Fit:
        trainer = compose_config(["trainer.batch_size=4", "trainer.epochs=3", "trainer.lr=1e-2"]).trainer
        spec = FitSpec("miniature", trainer.model_copy(update=dict(self.trainer)), self.seed, RunFolder(folder))
        return Fit(build(self.seed), method(self.method, **self.settings), spec)


def models(name: str, *settings: Mapping[str, Any]) -> list[Model]:
    """Models of one method with the same seed."""
    return [Model(name, each) for each in settings]


def inputs(examples: Split) -> TrainingInputs:
    data = replace(dataset(examples), validation=replace(examples, mirror="none", shift=0))
    logits = normal(examples.views * 13, CLASSES, seed=4)
    return TrainingInputs(data, perceptron(hidden=9, seed=3), logits.half() if examples.shift else logits)


def hidden_five(seed: int) -> nn.Module:
    return perceptron(seed=seed)


def check(
    folder: Path,
    way: FusionMode,
    each: Sequence[Model],
    build: Callable[[int], nn.Module] = hidden_five,
    given: TrainingInputs | None = None,
    weights: bool = True,
) -> list[FitResult]:
    """Train all alone and together: one after another in a step they are equal, stacked they are close."""
    given = given or inputs(split(13))
    separate = [model.fit(folder / f"alone{index}", build) for index, model in enumerate(each)]
    expected = [alone(one, given) for one in separate]
    fits = [model.fit(folder / f"together{index}", build) for index, model in enumerate(each)]
    found = fit_fused(fits, given, backend(), way)
    results = []
    for (network, progress), result in zip(expected, found, strict=True):
        assert isinstance(result, FitResult), result
        assert result.figures["fused_models"] == len(each)
        assert result.progress.steps == progress.steps
        assert result.progress.best_epoch == progress.best_epoch
        close = {"rtol": 0, "atol": 0} if way == "loop" else {"rtol": 1e-4, "atol": 1e-5}
        for row, other in zip(progress.history, result.progress.history, strict=True):
            assert row.keys() == other.keys()
            for key in row.keys() - {"seconds"}:
                assert other[key] == pytest.approx(row[key], rel=close["rtol"], abs=close["atol"]), key
        if weights:
            torch.testing.assert_close(result.network.state_dict(), network.state_dict(), **close)
        results.append(result)
    losses = [result.progress.history[-1]["loss"] for result in results]
    assert len(set(losses)) == len(losses), "what the models differ in has no effect"
    return results


HINT = [{"T": 2.0}, {"T": 5.0, "lambda_T": 0.5}, {"lambda_T": 3.0}]
VARIANCE = [
    {"lambda_V": 0.1, "warmup_end": 6.0, "log_sigma2_init": -3.0},
    {"lambda_V": 1.0, "warmup_start": 0.0, "log_sigma2_init": -3.0, "log_sigma2_lr": 5.0},
    {"lambda_V": 1.0, "warmup_start": 0.0, "log_sigma2_init": -2.0, "threshold": 1.0},
]
BLOCK = [{"lambda_g": 1e-3}, {"lambda_g": 1e-1}, {"lambda_g": 1.0}]
RATES = [{"dropout": 0.2}, {"dropout": 0.5, "input_dropout": 0.1}, {"dropout": 0.5, "input_dropout": 0.4}]
NOISE = [{"sigma": 0.1}, {"sigma": 1.0}, {"alpha": 0.9}]
CASES = {
    "vanilla": [Model("vanilla", {}, trainer={"lr": lr}) for lr in (1e-2, 2e-2, 5e-3)],
    "adam with options": [
        Model("vanilla", {}, trainer={"weight_decay": decay, "label_smoothing": smoothing, "average": average} | cycle)
        for decay, smoothing, average, cycle in (
            (0.1, 0.1, 0.5, {}),
            (1.0, 0.3, 0.9, {"schedule": "one-cycle", "peak": 0.2}),
            (0.1, 0.1, 0.9, {"schedule": "one-cycle", "peak": 0.7}),
        )
    ],
    "sgd with options": [
        Model("kd-vbd", {"log_sigma2_init": -3.0}, trainer={"optimizer": "sgd", "average": 0.8} | own)
        for own in (
            {"momentum": 0.5, "weight_decay": 0.1},
            {"momentum": 0.9, "weight_decay": 0.1},
            {"momentum": 0.9, "weight_decay": 1.0, "lr": 2e-2},
        )
    ],
    "standardized": models("kd", *({"standardize": True, **own} for own in HINT)),
    "decoupled": models("kd", *({"decoupled": True, **own} for own in ({"beta": 1.0}, {"beta": 4.0}, {"T": 2.0}))),
    "dropout": models("dropout", *RATES[1:]),
    "kd": models("kd", *HINT),
    "kd-dropout": models("kd-dropout", *({"input_dropout": 0.1} | a | b for a, b in zip(RATES, HINT, strict=True))),
    "svd": models("svd", *VARIANCE),
    "vbd": models("vbd", *VARIANCE),
    "kd-svd": models("kd-svd", *(a | b for a, b in zip(VARIANCE, HINT, strict=True))),
    "kd-vbd": models("kd-vbd", *(a | b for a, b in zip(VARIANCE, HINT, strict=True))),
    "st-svd": models("st-svd", *(a | b for a, b in zip(VARIANCE, BLOCK, strict=True))),
    "st-vbd": models("st-vbd", *(a | b for a, b in zip(VARIANCE, BLOCK, strict=True))),
    "noisy": models("noisy", *NOISE),
    "noisy, once and for all": models("noisy", *(each | {"resample": False} for each in NOISE)),
    "noisy, random sigma": models(
        "noisy", *({"sigma": None, "sigma_range": [0.1, high], "per": "batch"} for high in (0.5, 2.0))
    ),
    "noisy-student": models("noisy-student", *NOISE),
    "noisy with weight decay and dropout": models(
        "noisy", {"l2": 0.1, "fc_dropout": 0.1}, {"l2": 0.1, "fc_dropout": 0.5}, {"l2": 1.0, "fc_dropout": 0.5}
    ),
    "soft-labels": models("soft-labels", {"alpha": 0.3}, {"alpha": 0.9, "T": 3.0}),
    "kd-mixture": models("kd-mixture", {"alpha": 0.3, "T": 2.0}, {"alpha": 0.9}),
    "bc": models(
        "bc",
        {"lambda_V": 0.1, "warmup_start": 0.0},
        {"lambda_V": 1.0, "warmup_start": 0.0, "log_sigma2_init": -3.0},
        {"lambda_V": 1.0, "warmup_start": 0.0, "warmup_end": 2.0, "threshold": [3.0, 1.0]},
    ),
}


@BOTH_WAYS
@pytest.mark.parametrize("case", CASES)
def test_together_is_alone(tmp_path: Path, way: FusionMode, case: str):
    check(tmp_path, way, CASES[case])


# Several orders of the examples; with fixed noise on the targets also several targets, with all combinations of both.
@BOTH_WAYS
@pytest.mark.parametrize("name", ["vanilla", "kd-vbd", "noisy", "noisy, once and for all"])
def test_seeds_have_their_own_batches(tmp_path: Path, way: FusionMode, name: str):
    word, _, fixed = name.partition(", ")
    settings = {"resample": False} if fixed else {}
    each = [Model(word, settings, seed=seed, trainer={"lr": lr}) for seed, lr in ((3, 1e-2), (0, 1e-2), (3, 2e-2))]
    check(tmp_path, way, each, given=inputs(replace(split(13), mirror="random")))


@BOTH_WAYS
@pytest.mark.parametrize("name", ["kd", "noisy, once and for all"])
@pytest.mark.parametrize("seeds", [(0, 0), (3, 0)])
def test_shifted_views_have_their_own_logits(tmp_path: Path, way: FusionMode, name: str, seeds: tuple[int, int]):
    word, _, fixed = name.partition(", ")
    settings = [{"resample": False, "sigma": sigma} if fixed else {"T": 9 * sigma} for sigma in (0.3, 0.6)]
    each = [Model(word, own, seed=seed) for own, seed in zip(settings, seeds, strict=True)]
    check(tmp_path, way, each, given=inputs(replace(split(13), mirror="random", shift=1)))


# Batch norm, grouped, strided and 1x1 convolutions, pooling of every kind, dropout that belongs to the network.
FAMILIES = ["lenet", "vgg", "resnet", "densenet", "keras-resnet"]


@BOTH_WAYS
@pytest.mark.parametrize("family", FAMILIES)
def test_networks_with_convolutions(tmp_path: Path, way: FusionMode, family: str):
    given = inputs(Split(normal(13, *IMAGE, seed=1), split(13).labels))
    trainer = {"batch_size": 13, "lr": 1e-3}
    each = [Model("kd", own, trainer=trainer) for own in ({"T": 2.0}, {"T": 4.0, "lambda_T": 0.1})]
    # A bias before batch norm has no gradient but rounding, which Adam blows up: weights are compared below.
    check(tmp_path, way, each, build=lambda seed: small(family, seed), given=given, weights=way == "loop")


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_statistics_of_one_step(family: str):
    """In double precision, by Adam's first moments."""
    hows = [method("kd-vbd", T=T, log_sigma2_init=-3.0) for T in (2.0, 4.0)]
    students = [how.prepare(small(family, seed)).double() for seed, how in enumerate(hows)]
    objectives = [how.objective(student, None, 8) for how, student in zip(hows, students, strict=True)]
    batch = Batch(normal(8, *IMAGE, seed=1).double(), split(8).labels, normal(8, CLASSES, seed=4).double())
    sources = [NoiseSource(student, batch.images, generator(seed)) for seed, student in enumerate(students)]
    drawn = [source.draw() for source in sources]
    noise = [
        {name: value.double() if value.is_floating_point() else value for name, value in one.items()} for one in drawn
    ]
    rows = [
        torch.tensor([number(50.0) for number in one.hyperparameters.values()] + [1e-3, 1, 0.1, 1e-3])
        for one in objectives
    ]
    states = [State.of(student, 3) for student in students]
    together = State.stack(states)
    step = make_step(students[0], objectives[0], eager=True, autocast=None, stacking=Stacking(False, False))
    step(together, batch, stacked(noise), torch.stack(rows))
    for student, objective, state, own, row in zip(students, objectives, states, noise, rows, strict=True):
        make_step(student, objective, eager=True, autocast=None)(state, batch, own, row)
    for state, model in zip(states, together.models, strict=True):
        torch.testing.assert_close(model.first, state.first, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(model.buffers, state.buffers, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(model.sums, state.sums)


def learning_rates(*rates: float, **trainer: Any) -> list[Model]:
    return [Model("vanilla", {}, trainer={"lr": rate, **trainer}) for rate in rates]


def fits_of(folder: Path, each: Sequence[Model]) -> list[Fit]:
    return [model.fit(folder / str(index), hidden_five) for index, model in enumerate(each)]


def alone(one: Fit, given: TrainingInputs) -> tuple[nn.Module, Progress]:
    return fit(one.network, one.method, given, one.spec, backend())


def assert_same(found: FitResult | Diverged, network: nn.Module, progress: Progress, atol: float = 0) -> None:
    assert isinstance(found, FitResult)
    for row, other in zip(progress.history, found.progress.history, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=0, abs=atol)
    for value, other in zip(network.state_dict().values(), found.network.state_dict().values(), strict=True):
        torch.testing.assert_close(other, value, rtol=0, atol=atol)


# In a grouped convolution the models' numbers lie side by side.
@BOTH_WAYS
@pytest.mark.parametrize("family", ["mlp", "vgg"])
def test_one_that_diverges_is_given_up_and_the_others_go_on(tmp_path: Path, way: FusionMode, family: str, caplog):
    given = inputs(Split(normal(13, *IMAGE, seed=1), split(13).labels))

    def fits(name: str) -> list[Fit]:
        each = learning_rates(1e-3, 1e38, 2e-3)
        return [
            model.fit(tmp_path / f"{name}{index}", lambda seed: small(family, seed)) for index, model in enumerate(each)
        ]

    first, bad, last = fits("alone")
    with pytest.raises(Diverged) as failure:
        alone(bad, given)
    together = fits("together")
    found = fit_fused(together, given, backend(), way)
    assert isinstance(found[1], Diverged)
    assert str(found[1]) == str(failure.value)
    assert f"{failure.value}; the others go on" in caplog.text
    assert_same(found[0], *alone(first, given), atol=1e-3)
    assert_same(found[2], *alone(last, given), atol=1e-3)
    # Nothing of what is no longer finite is kept.
    assert [each.spec.checkpoint.exists() for each in together] == [True, False, True]


@BOTH_WAYS
def test_each_stops_when_its_own_patience_ends(tmp_path: Path, way: FusionMode):
    each = learning_rates(1e-4, 3e-2, 0.3, patience=2, epochs=8)
    found = check(tmp_path, way, each)
    assert len({result.progress.steps for result in found}) > 1


@contextmanager
def stopped_after(draws: int) -> Iterator[None]:
    """Ask the process to stop when noise was drawn so many times: once for each model and step."""
    original, count = NoiseSource.draw, iter(range(1, 10**6))

    def draw(self: NoiseSource) -> dict[str, Tensor]:
        if next(count) == draws:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(NoiseSource, "draw", draw)
        yield


RESUMED = [Model("kd-vbd", own, seed=seed) for seed, own in enumerate(VARIANCE)]


# In the middle of an epoch, and at the end of one: three steps make an epoch.
@BOTH_WAYS
@pytest.mark.parametrize("last", [5, 6])
def test_stopped_together_and_continued_together_or_alone(tmp_path: Path, way: FusionMode, last: int):
    given = inputs(split(13))
    whole = fit_fused(fits_of(tmp_path / "whole", RESUMED), given, backend(), way)
    for name in ("together", "alone"):
        fits = fits_of(tmp_path / name, RESUMED)
        with stopped_after(last * len(RESUMED)), pytest.raises(Interrupted, match="3 models: stopped in epoch"):
            fit_fused(fits, given, backend(), way)
    for expected, found in zip(
        whole, fit_fused(fits_of(tmp_path / "together", RESUMED), given, backend(), way), strict=True
    ):
        assert isinstance(expected, FitResult)
        assert_same(found, expected.network, expected.progress)
    for expected, one in zip(whole, fits_of(tmp_path / "alone", RESUMED), strict=True):
        assert_same(expected, *alone(one, given), atol=0 if way == "loop" else 1e-4)


def test_stopped_alone_and_continued_together_with_those_that_are_as_far(tmp_path: Path, caplog):
    given = inputs(split(13))
    expected = [alone(one, given) for one in fits_of(tmp_path / "whole", RESUMED)]
    for one in fits_of(tmp_path / "stopped", RESUMED)[:2]:
        with stopped_after(5), pytest.raises(Interrupted):
            alone(one, given)
    with caplog.at_level(logging.INFO, "kdx.training.trainer"):
        found = fit_fused(fits_of(tmp_path / "stopped", RESUMED), given, backend(), "loop")
    assert caplog.text.count("continued at step 5") == 2
    for result, (network, progress) in zip(found, expected, strict=True):
        assert_same(result, network, progress)
    assert [result.figures["fused_models"] for result in found if isinstance(result, FitResult)] == [2, 2, 1]


def test_time_is_shared_out(tmp_path: Path):
    started = time.monotonic()
    found = fit_fused(fits_of(tmp_path, RESUMED), inputs(split(13)), backend(), "loop")
    spent = time.monotonic() - started
    seconds = [result.progress.seconds for result in found if isinstance(result, FitResult)]
    assert len(seconds) == 3
    assert 0 < sum(seconds) < spent
    assert max(seconds) == pytest.approx(min(seconds))


def test_the_faster_way_is_measured_without_a_trace(tmp_path: Path, caplog, monkeypatch):
    """What is tried is a copy: the result is that of the way that was chosen."""
    given = inputs(split(13))
    monkeypatch.setattr(stacking, "LEAST_STEPS", 9)
    with caplog.at_level(logging.INFO, "kdx.training.stacked"):
        found = fit_fused(fits_of(tmp_path / "auto", RESUMED), given, backend(), "auto")
    assert "is faster (measured" in caplog.text
    way: FusionMode = "loop" if "loop is faster" in caplog.text else "stacked"
    expected = fit_fused(fits_of(tmp_path / "given", RESUMED), given, backend(), way)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(other, FitResult)
        assert_same(one, other.network, other.progress)


@pytest.mark.parametrize("executed", ["eager", "captured"])
def test_what_cannot_be_stacked_is_trained_one_after_another_and_that_is_told(
    tmp_path: Path, executed: str, caplog, monkeypatch
):
    def unable(*_: object) -> None:
        raise RuntimeError("NYI:\n  a layer")

    monkeypatch.setattr("kdx.device.execution.Execution.name", executed)
    monkeypatch.setattr(stacking, "LEAST_STEPS", 9)
    monkeypatch.setattr(stacking, "_at_once", lambda *_: unable)
    found = fit_fused(fits_of(tmp_path / "auto", RESUMED), inputs(split(13)), backend(), "auto")
    assert "WARNING" in caplog.text
    assert "3 models in a step: loop, for they cannot be stacked (NYI: a layer)" in caplog.text
    expected = fit_fused(fits_of(tmp_path / "given", RESUMED), inputs(split(13)), backend(), "loop")
    for one, other in zip(found, expected, strict=True):
        assert isinstance(other, FitResult)
        assert_same(one, other.network, other.progress)
    # Who asks for that way hears why not.
    with pytest.raises(RuntimeError, match="NYI"):
        fit_fused(fits_of(tmp_path / "stacked", RESUMED), inputs(split(13)), backend(), "stacked")


def test_a_short_training_is_not_measured(tmp_path: Path, caplog):
    with caplog.at_level(logging.INFO, "kdx.training.stacked"):
        fit_fused(fits_of(tmp_path, RESUMED), inputs(split(13)), backend(), "auto")
    assert "3 models in a step: loop" in caplog.text
