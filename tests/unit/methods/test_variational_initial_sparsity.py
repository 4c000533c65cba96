"""How many weights a variational method prunes before any training: the floor of its sparsity."""

import logging
from copy import deepcopy
from math import exp
from pathlib import Path

import pytest
import torch
from helpers.miniature import CLASSES, backend, dataset, method, normal, perceptron, split
from helpers.short_runs import metrics
from helpers.typed import typed
from torch import nn

from kdx.config.compose import compose_config, compose_sweep
from kdx.config.schema import Config
from kdx.errors import Interrupted
from kdx.experiment import run
from kdx.methods.fit import FitSpec, TrainingInputs, initial_figures
from kdx.methods.procedure import FitResult, SingleFit
from kdx.models import build_model
from kdx.models.weights import weight_matrices
from kdx.runs.folder import RunFolder, run_folder
from kdx.sweep.fused_runs import Fit, fit_fused, run_fused

KEY = "initial_sparsity_percent"
THRESHOLD = 3.0
VARIATIONAL = ["svd", "vbd", "kd-svd", "kd-vbd", "st-svd", "st-vbd", "st-bsr"]
LENET = build_model(compose_config(["student=lenet-300-100"]).student, (1, 28, 28), 10, seed=0)

TINY = (
    *("dataset=digits", "dataset.train_size=200", "student.hidden=[30]", "trainer.epochs=2", "method=kd-svd"),
    *("teacher.hidden=[6]", "teacher.trainer.epochs=1"),
    *("device=cpu", "device.threads=1", "device.gemm=default", "device.latency_seconds=0"),
)


def spec(folder: Path) -> FitSpec:
    return FitSpec(
        "miniature", compose_config(["trainer.batch_size=4", "trainer.epochs=2"]).trainer, 0, RunFolder(folder)
    )


def counted(network: nn.Module, log_sigma2: float, floor: float) -> float:
    """theta^2 exp(3) <= sigma^2, from the definition of alpha, with the floor of 1e-8 under theta^2."""
    weights = torch.cat([weight.flatten() for weight in weight_matrices(network).values()]).double()
    return 100 * ((weights.square() + floor) * exp(THRESHOLD) <= exp(log_sigma2)).double().mean().item()


@pytest.mark.parametrize("name", ["svd", "st-vbd"])
@pytest.mark.parametrize("log_sigma2", [-10.0, -8.0])
def test_it_is_the_share_of_small_means(tmp_path: Path, name: str, log_sigma2: float):
    how = method(name, log_sigma2_init=log_sigma2, threshold=THRESHOLD)
    found = initial_figures(LENET, how, spec(tmp_path))[KEY]
    assert found == counted(LENET, log_sigma2, floor=1e-8)
    assert found == pytest.approx(counted(LENET, log_sigma2, floor=0.0), abs=0.05)
    low, high = {-10.0: (3, 6), -8.0: (10, 13)}[log_sigma2]
    assert low < found < high


def test_the_log_tells_it_and_the_network_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    network = perceptron()
    before = deepcopy(network)
    with caplog.at_level(logging.INFO, "kdx.methods.fit"):
        percent = initial_figures(network, method("svd", log_sigma2_init=-6.0), spec(tmp_path / "run"))[KEY]
    assert caplog.messages == [f"miniature, run: {percent:.2f} % of the weights are pruned before any training"]
    assert [type(layer) for layer in network.modules()] == [type(layer) for layer in before.modules()]
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("name", ["vanilla", "kd", "dropout", "kd-mixture", "bc"])
def test_other_methods_do_not_have_it(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "kdx.methods.fit"):
        assert KEY not in initial_figures(perceptron(), method(name), spec(tmp_path))
    assert not caplog.messages


@pytest.mark.parametrize("name", VARIATIONAL)
def test_all_variational_methods_have_it(tmp_path: Path, name: str):
    assert KEY in initial_figures(perceptron(), method(name), spec(tmp_path))


def test_alone_and_together_it_is_the_same(tmp_path: Path):
    data = dataset(split(13))
    inputs = TrainingInputs(data, perceptron(hidden=9, seed=3), normal(13, CLASSES, seed=4))
    methods = [method("kd-vbd", log_sigma2_init=value) for value in (-8.0, -5.0, -3.0)]
    alone = [
        SingleFit().run(perceptron(seed=seed), how, inputs, spec(tmp_path / f"alone{seed}"), backend()).figures
        for seed, how in enumerate(methods)
    ]
    fits = [Fit(perceptron(seed=seed), how, spec(tmp_path / f"fit{seed}")) for seed, how in enumerate(methods)]
    together = fit_fused(fits, inputs, backend(), "stacked")
    assert [
        {name: value for name, value in one.figures.items() if name != "fused_models"}
        for one in together
        if isinstance(one, FitResult)
    ] == alone
    assert len({figures[KEY] for figures in alone}) == len(alone)


def config(folder: Path, *words: str) -> Config:
    (job,) = compose_sweep(typed([*TINY, f"outputs={folder}", *words]))
    return job.config


def test_a_run_has_it_interrupted_or_together_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def whole(name: str) -> list[Config]:
        return [config(tmp_path / name, f"seed={seed}") for seed in range(2)]

    alone, together, stopped = whole("alone"), whole("together"), config(tmp_path / "stopped")
    for each in alone:
        run(each)
    run_fused(together, "stacked", None)
    expected = [metrics(run_folder(each).path)[KEY] for each in alone]
    assert expected[0] != expected[1]
    assert all(0 < percent < 50 for percent in expected)
    assert [metrics(run_folder(each).path)[KEY] for each in together] == expected
    for each in (*alone, *together):
        folder = run_folder(each).path
        line = f"{folder.name}: {metrics(folder)[KEY]:.2f} % of the weights are pruned before any training"
        assert run_folder(each).log_file.read_text().count(line) == 1

    def stop(*_: object) -> None:
        raise Interrupted("between the training and its results")

    # What was trained is in the checkpoint, whose weights the figure must not be of.
    with monkeypatch.context() as patched:
        patched.setattr("kdx.experiment.report", stop)
        with pytest.raises(Interrupted):
            run(stopped)
    assert list(run_folder(stopped).path.glob("checkpoint*.safetensors"))
    run(stopped)
    assert metrics(run_folder(stopped).path)[KEY] == expected[0]
    assert "continued at step" in run_folder(stopped).log_file.read_text()


def test_a_run_of_another_method_does_not_have_it(tmp_path: Path):
    each = config(tmp_path, "method=kd", "trainer.epochs=1")
    run(each)
    assert KEY not in metrics(run_folder(each).path)
