"""Models that are trained together end as they would alone, whatever they differ in; one that fails fails alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import CLASSES, dataset, engine, method, normal, perceptron, split
from networks import IMAGE, small
from torch import nn

from kdx.compose import single
from kdx.data.dataset import Split
from kdx.errors import Diverged
from kdx.fit import Fit, Fitted, Lesson, Plan, fit, fit_together
from kdx.runs import RunFolder
from kdx.stacked import Way

WAYS: list[Way] = ["stacked", "loop"]
BOTH_WAYS = pytest.mark.parametrize("way", WAYS)


@dataclass(frozen=True)
class Model:
    """What one of the models that are trained together has of its own."""

    method: str
    settings: Mapping[str, Any]
    seed: int = 0
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def fit(self, folder: Path, build: Callable[[int], nn.Module]) -> Fit:
        trainer = single(["trainer.batch_size=4", "trainer.epochs=3", "trainer.lr=1e-2"]).trainer
        plan = Plan("miniature", trainer.model_copy(update=dict(self.trainer)), self.seed, RunFolder(folder))
        return Fit(build(self.seed), method(self.method, **self.settings), plan)


def models(name: str, *settings: Mapping[str, Any]) -> list[Model]:
    """Models of one method with the same seed."""
    return [Model(name, each) for each in settings]


def lesson(examples: Split) -> Lesson:
    data = replace(dataset(examples), validation=replace(examples, mirror="none"))
    return Lesson(data, perceptron(hidden=9, seed=3), normal(examples.views * 13, CLASSES, seed=4))


def hidden_five(seed: int) -> nn.Module:
    return perceptron(seed=seed)


def check(
    folder: Path,
    way: Way,
    each: Sequence[Model],
    build: Callable[[int], nn.Module] = hidden_five,
    given: Lesson | None = None,
) -> list[Fitted]:
    """Train all alone and together: one after another in a step they are equal, stacked they are close."""
    given = given or lesson(split(13))
    alone = [model.fit(folder / f"alone{index}", build) for index, model in enumerate(each)]
    expected = [fit(one.network, one.method, given, one.plan, engine()) for one in alone]
    fits = [model.fit(folder / f"together{index}", build) for index, model in enumerate(each)]
    found = fit_together(fits, given, engine(), way)
    results = []
    for (network, progress), result in zip(expected, found, strict=True):
        assert isinstance(result, Fitted), result
        assert result.models == len(each)
        assert result.progress.steps == progress.steps
        assert result.progress.best_epoch == progress.best_epoch
        close = {"rtol": 0, "atol": 0} if way == "loop" else {"rtol": 1e-4, "atol": 1e-5}
        for row, other in zip(progress.history, result.progress.history, strict=True):
            assert row.keys() == other.keys()
            for key in row.keys() - {"seconds"}:
                assert other[key] == pytest.approx(row[key], rel=close["rtol"], abs=close["atol"]), key
        for (name, value), other in zip(
            network.state_dict().items(), result.network.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(other, value, msg=lambda text, name=name: f"{name}: {text}", **close)
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
def test_together_is_alone(tmp_path: Path, way: Way, case: str):
    check(tmp_path, way, CASES[case])


# Several orders of the examples; with fixed noise on the targets also several targets, with all combinations of both.
@BOTH_WAYS
@pytest.mark.parametrize("name", ["vanilla", "kd-vbd", "noisy", "noisy, once and for all"])
def test_seeds_have_their_own_batches(tmp_path: Path, way: Way, name: str):
    word, _, fixed = name.partition(", ")
    settings = {"resample": False} if fixed else {}
    each = [Model(word, settings, seed=seed, trainer={"lr": lr}) for seed, lr in ((3, 1e-2), (0, 1e-2), (3, 2e-2))]
    check(tmp_path, way, each, given=lesson(replace(split(13), mirror="random")))


# Batch norm, grouped, strided and 1x1 convolutions, pooling of every kind, dropout that belongs to the network.
@BOTH_WAYS
@pytest.mark.parametrize("family", ["lenet", "vgg", "resnet", "densenet", "keras-resnet"])
def test_networks_with_convolutions(tmp_path: Path, way: Way, family: str):
    images = normal(13, *IMAGE, seed=1)
    given = lesson(Split(images, split(13).labels))
    each = [Model("kd", {"T": 2.0}), Model("kd", {"T": 4.0}), Model("kd", {"T": 4.0}, trainer={"lr": 1e-3})]
    check(tmp_path, way, each, build=lambda seed: small(family, seed), given=given)
