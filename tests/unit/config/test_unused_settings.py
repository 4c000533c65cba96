"""Overrides that change nothing are told, with the setting beside which they do."""

import json
from pathlib import Path

import pytest
from helpers.miniature import perceptron

from kdx.checks import check_method
from kdx.cli.main import main
from kdx.config.compose import compose_config
from kdx.experiment import run
from kdx.methods import build


def told(*words: str) -> list[str]:
    return check_method(compose_config(words), words)


@pytest.mark.parametrize(
    ("words", "idle", "reason"),
    [
        ("method=kd method.lambda_T=0 method.T=4", "method.T=4", "method.lambda_T=0"),
        ("method=kd-mixture method.alpha=0 method.T=4", "method.T=4", "method.alpha=0"),
        ("method=soft-labels method.T=4 method.alpha=0", "method.T=4", "method.alpha=0"),
        ("method=svd method.lambda_V=0 method.warmup_end=3", "method.warmup_end=3", "method.lambda_V=0"),
        ("method=st-vbd method.lambda_g=0 method.bsr.norm=l1_l2", "method.bsr.norm=l1_l2", "method.lambda_g=0"),
        ("method=noisy method.sigma=0 method.resample=false", "method.resample=false", "method.sigma=0"),
        ("method=noisy method.alpha=0 method.sigma=0.5", "method.sigma=0.5", "method.alpha=0"),
        (
            "method=noisy method.alpha=0 method.sigma=null method.sigma_range=[0.1,0.5] method.l2=1e-4",
            "method.sigma=null|method.sigma_range=[0.1,0.5]",
            "method.alpha=0",
        ),
        ("method=ikd method.pruning.tolerance=0.5", "method.pruning.tolerance=0.5", "method.prune=false"),
        ("method=sgld trainer.lr=0.1", "trainer.lr=0.1", "Langevin dynamics, whose step size is method.eta"),
        ("method=kd method.beta=2", "method.beta=2", "method.decoupled=false"),
        ("method=kd method.lambda_T=0 method.standardize=true", "method.standardize=true", "method.lambda_T=0"),
        ("trainer.schedule=one-cycle trainer.hold=0.5", "trainer.hold=0.5", "trainer.schedule=one-cycle"),
        ("trainer=short trainer.hold=0.5", "trainer.hold=0.5", "trainer.schedule=one-cycle"),
        ("trainer.peak=0.2", "trainer.peak=0.2", "trainer.schedule=hold"),
        ("trainer.momentum=0.5", "trainer.momentum=0.5", "trainer.optimizer=adam"),
        ("teacher.trainer.momentum=0.5", "teacher.trainer.momentum=0.5", "teacher.trainer.optimizer=adam"),
        (
            "teacher.trainer=short teacher.trainer.hold=1",
            "teacher.trainer.hold=1",
            "teacher.trainer.schedule=one-cycle",
        ),
        (
            "method=noisy trainer.label_smoothing=0.1",
            "trainer.label_smoothing=0.1",
            "method=noisy, which does not learn from the labels",
        ),
        (
            "method=soft-labels method.alpha=1 trainer.label_smoothing=0.1",
            "trainer.label_smoothing=0.1",
            "method=soft-labels, which does not learn from the labels",
        ),
        (
            "method=sgld trainer.weight_decay=0.1",
            "trainer.weight_decay=0.1",
            "Langevin dynamics, whose step size is method.eta",
        ),
        ("method=bdk teacher.trainer.lr=1", "teacher.trainer.lr=1", "a teacher that is sampled and never trained"),
    ],
)
def test_what_has_no_effect_is_told_with_the_reason(words: str, idle: str, reason: str):
    assert told(*words.split()) == [f"{each} has no effect on the training with {reason}" for each in idle.split("|")]


@pytest.mark.parametrize(
    "words",
    [
        "method=kd method.lambda_T=0",
        "method=kd method.T=4",
        "method=svd method.lambda_V=0 method.threshold=2",
        "method=st-vbd method.lambda_g=1 method.bsr.norm=l1_l2",
        "method=ikd method.prune=true method.pruning.tolerance=0.5",
        "method=noisy-student method.sigma=0",
        "method=kd trainer.lr=0.1",
        "method=bdk trainer.lr=0.1",
        "method=bdk trainer.label_smoothing=0.1",
        "method=kd method.decoupled=true method.beta=2",
        "trainer.schedule=one-cycle trainer.peak=0.2",
        "trainer.optimizer=sgd trainer.momentum=0.5 trainer.weight_decay=0.1",
        "teacher.trainer.optimizer=sgd teacher.trainer.momentum=0.5",
        "trainer.hold=0.2 trainer.label_smoothing=0.1 trainer.average=0.9",
    ],
)
def test_nothing_is_told_of_what_has_an_effect_or_was_not_typed(words: str):
    assert told(*words.split()) == []


WORDS = {
    "never": "method.lambda_V has no effect on the training, with method.warmup_start={start} and"
    " trainer.epochs={epochs}; lower the one or raise the other",
    "partly": "method.lambda_V comes to {share} of its value only, with method.warmup_end={end} and"
    " trainer.epochs={epochs}; lower the one or raise the other",
    "reached": "",
}


@pytest.mark.parametrize("method", ["st-vbd", "svd", "kd-vbd", "bc"])
@pytest.mark.parametrize(
    ("start", "end", "epochs", "expected", "share"),
    [
        (5, 20, 5, "never", None),
        (5, 20, 4, "never", None),
        (5, 20, 6, "partly", "0.0667"),
        (5, 20, 19, "partly", "0.933"),
        (5, 20, 20, "reached", None),
        (0, 10, 1, "partly", "0.1"),
        (2.5, 5, 3, "partly", "0.2"),
        # Without a warm-up of any length all of the weight is there from `start` on, if a step is.
        (5, 5, 5, "never", None),
        (5, 0, 5, "never", None),
        (5, 5, 6, "reached", None),
        (0, 0, 1, "reached", None),
    ],
)
def test_a_warm_up_that_the_training_does_not_last_for_is_told_whatever_was_typed(
    method: str, start: float, end: float, epochs: int, expected: str, share: str | None
):
    words = [f"method={method}", f"method.warmup_start={start}", f"method.warmup_end={end}", f"trainer.epochs={epochs}"]
    line = WORDS[expected].format(start=start, end=end, epochs=epochs, share=share)
    assert told(*words) == ([line] if line else [])
    # What is told is what the steps get: 7 in each epoch, the last just before its end.
    lambda_V = build(compose_config(words).method)[0].objective(perceptron(), None, 1).hyperparameters["lambda_V"]
    weights = [lambda_V(step / 7) for step in range(7 * epochs)]
    full = compose_config(words).method["lambda_V"]
    if expected == "never":
        assert set(weights) == {0.0}
    else:
        assert weights[-1] > 0.0
        assert (lambda_V(epochs) == pytest.approx(full)) == (expected == "reached")
    if share is not None:
        assert lambda_V(epochs) == pytest.approx(float(share) * full, rel=5e-3)


def test_a_weight_of_zero_and_other_methods_have_no_warm_up_to_tell_of():
    assert told("method=st-vbd", "method.lambda_V=0", "trainer.epochs=1") == []
    assert told("method=kd", "trainer.epochs=1") == []


def test_the_default_run_lasts_for_its_warm_up():
    for method in ("st-vbd", "svd", "vbd", "kd-svd", "kd-vbd", "st-svd", "st-bsr", "bc", "paper/bc"):
        assert told(f"method={method}") == []


def test_a_run_whose_kl_had_no_weight_says_so_in_its_figures_too(tmp_path: Path):
    tiny = ("dataset=digits", "dataset.train_size=100", "student.hidden=[4]", "teacher.hidden=[4]", "method=svd")
    quick = ("device=cpu", "device.threads=1", "device.gemm=default", "device.latency_seconds=0")
    words = [*tiny, *quick, "trainer.epochs=2", "teacher.trainer.epochs=1", f"outputs={tmp_path}"]

    def metrics(*more: str) -> dict:
        return json.loads((run(compose_config([*words, *more])) / "metrics.json").read_bytes())

    never = metrics()
    assert never["lambda_V_reached"] == 0
    assert "the KL had no weight in any epoch" in never["warnings"]
    partly = metrics("method.warmup_start=1", "method.warmup_end=5", "method.lambda_V=2")
    assert partly["lambda_V_reached"] == pytest.approx(0.5)
    assert "KL" not in partly.get("warnings", "")
    whole = metrics("method.warmup_start=0", "method.warmup_end=2")
    assert "lambda_V_reached" not in whole
    assert "KL" not in whole.get("warnings", "")


def test_a_run_and_a_sweep_tell_it_on_stderr_and_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    # Ends both behind the warning, with a mistake of its own.
    words = ["method=kd", "method.lambda_T=0", "method.T=4", "dataset.root=/nowhere", "dataset.download=false"]
    line = "kdx: method.T=4 has no effect on the training with method.lambda_T=0\n"
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err.startswith(line)
    main(["train", "-m", *words, "seed=0,1"])
    assert capsys.readouterr().err.count(line) == 1
