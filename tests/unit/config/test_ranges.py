"""Numbers of methods that nothing sensible can be computed with are refused, and none of conf/ is."""

import re

import pytest
import torch

from kdx.checks import check_method
from kdx.config.compose import compose_config
from kdx.config.groups import load_groups
from kdx.errors import UserError


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("method=kd method.T={}", "1e-30 0 -1 9e-4 1.1e6 1e30 nan inf"),
        ("method=kd-mixture method.T={}", "1e-30 1e30"),
        ("method=soft-labels method.T={}", "1e-30 1e30"),
        ("method=kd method.lambda_T={}", "-1 1e7 1e30"),
        ("method=svd method.lambda_V={}", "-1 1e30"),
        ("method=bc method.lambda_V={}", "-1 1e30"),
        ("method=st-vbd method.lambda_g={}", "-1e-9 1e30"),
        ("method=svd method.log_sigma2_init={}", "-1e30 -41 11 1e30"),
        ("method=bc method.log_sigma2_init={}", "-41 11"),
        ("method=svd method.log_sigma2_lr={}", "0 -1 1e30"),
        ("method=svd method.threshold={}", "-9 9 1e30"),
        ("method=bc method.threshold={}", "-1e30 1e30"),
        ("method=bc method.clip_var={}", "0 1e30"),
        ("method=noisy method.sigma={}", "-1 1e30"),
        ("method=noisy method.l2={}", "-1 1e30"),
        ("method=kddp method.L1={}", "-1 1e30"),
        ("method=sgld method.eta={}", "0 -1 2 1e30"),
        ("method=sgld method.prior={}", "-1 1e30"),
        ("method=sgld method.decay={}", "-1 1e30"),
        ("method=sgld method.decay_epochs={}", "0 1e-30"),
        ("method=bdk method.input_noise={}", "-1 1e30"),
        ("method=bdk method.student_prior={}", "-1 1e30"),
        ("method=ikd method.tolerance={}", "-1 101"),
        ("method=prune method.retrain_lr={}", "0 1e30"),
        ("method=ip method.keep=null method.q={}", "0 1e30"),
        ("trainer.lr={}", "0 -1 nan inf"),
    ],
)
def test_out_of_any_sense(words: str, allowed: str):
    for value in allowed.split():
        with pytest.raises(UserError) as caught:
            check_method(compose_config(words.format(value).split()))
        key = words.split()[-1].partition("=")[0]
        told = re.fullmatch(
            rf"{re.escape(key)}: (\S+) is not allowed; allowed: a finite number ([<>].*)", str(caught.value)
        )
        assert told, caught.value
        assert told[1] in (value, str(float(value)))


def test_the_ends_of_a_range_are_in_it():
    for words in (
        *("method=kd method.T=0.001", "method=kd method.T=1e6", "method=soft-labels method.T=5000"),
        *("method=svd method.lambda_V=0", "method=svd method.lambda_V=1e6", "method=svd method.log_sigma2_init=-40"),
        *("method=sgld method.eta=1", "method=bc method.threshold=[-2.8,-3,60]", "seed=9223372036854775807"),
        *(
            "method=noisy method.sigma=null method.sigma_range=[0,1000]",
            "student=nin dataset=cifar10 student.width=100",
        ),
    ):
        check_method(compose_config(words.split()))


@pytest.mark.parametrize("T", [0.001, 1e6])
def test_at_its_ends_a_temperature_still_computes(T: float):
    """Of the classes one is left, or none is forgotten: no infinity, no equal predictions of unequal logits."""
    logits = torch.tensor([[8.0, -3.0, 5.0]])
    soft = torch.softmax(logits / T, dim=1)
    assert torch.isfinite(torch.log_softmax(logits / T, dim=1) * T * T).all()
    assert len(soft.unique()) == (3 if T > 1 else 2)


def test_no_choice_of_conf_is_refused():
    groups = load_groups()
    for method in groups["method"].choices:
        check_method(compose_config([f"method={method}"]))


def test_the_largest_seed_draws():
    for seed in (0, 2**63 - 1):
        assert torch.rand(1, generator=torch.Generator().manual_seed(seed)).item() < 1
