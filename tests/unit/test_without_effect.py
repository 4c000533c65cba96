"""Overrides that change nothing are told, with the setting beside which they do."""

import pytest

from kdx.cli import main
from kdx.compose import check_method, single


def told(*words: str) -> list[str]:
    return check_method(single(words), words)


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
