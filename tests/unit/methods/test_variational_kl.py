"""The KL terms against integrals and minimisations that do not know their closed forms."""

from math import exp, log, pi, sqrt

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import dawsn

from kdx.methods.variational import kl_svd, kl_vbd, log_alpha, log_dropout_rate

GRID = np.linspace(-8, 8, 33)
# Largest error of Molchanov's fit on the grid, 0.0094, and of its derivative, 0.0137; both lie near log alpha = -3.
FIT, SLOPE = 0.01, 0.015


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def kl_from_log_uniform(log_alpha: float) -> float:
    """KL(N(theta, alpha theta^2) || p(w) ~ 1/|w|), less its limit for large alpha.

    The entropy of q and the log prior leave E log|eps + 1/sqrt(alpha)|, eps ~ N(0, 1); at 1/sqrt(alpha) = 0 that is
    -(Euler's constant + log 2) / 2.
    """
    mean = exp(-log_alpha / 2)

    def integrand(x: float) -> float:
        return log(abs(x)) * exp(-((x - mean) ** 2) / 2) / sqrt(2 * pi) if x else 0.0

    # Split at the singularity, and no wider than the bell, which quad would otherwise miss.
    below = quad(integrand, min(mean - 12, -1), 0, limit=200)[0] if mean < 12 else 0.0
    above = quad(integrand, max(mean - 12, 0), mean + 12, limit=200)[0]
    return below + above + (np.euler_gamma + log(2)) / 2


def kl_from_best_normal(theta: float, sigma2: float) -> float:
    """The least KL(N(theta, sigma2) || N(0, gamma)) over gamma, found by search."""

    def kl(log_gamma: float) -> float:
        return 0.5 * (log_gamma - log(sigma2) + (sigma2 + theta**2) * exp(-log_gamma) - 1)

    return minimize_scalar(kl, bracket=(log(sigma2) - 1, log(sigma2 + theta**2) + 1), options={"xtol": 1e-12}).fun


def test_svd_is_the_divergence_from_the_log_uniform_prior():
    errors = [kl_svd(scalar(value)).item() - kl_from_log_uniform(value) for value in GRID]
    assert np.abs(errors).max() < FIT


def test_svd_has_the_slope_of_the_divergence_from_the_log_uniform_prior():
    for value in GRID:
        at = scalar(value)
        kl_svd(at).backward()
        mean = exp(-value / 2)
        # d/dm E log|eps + m| is sqrt(2) times Dawson's function of m / sqrt(2) (Hron et al. 2018).
        exact = -mean / 2 * sqrt(2) * dawsn(mean / sqrt(2))
        assert at.grad is not None
        assert at.grad.item() == pytest.approx(exact, abs=SLOPE)


def test_the_integral_and_its_slope_agree():
    """Two references of different origin: whoever doubts one may look at the other."""
    for value in (-4.0, 0.0, 3.0):
        mean, h = exp(-value / 2), 1e-4
        difference = (kl_from_log_uniform(value + h) - kl_from_log_uniform(value - h)) / (2 * h)
        assert difference == pytest.approx(-mean / 2 * sqrt(2) * dawsn(mean / sqrt(2)), abs=1e-5)


@pytest.mark.parametrize("theta", [0.02, -0.7, 3.0])
def test_vbd_is_the_divergence_from_the_best_normal_prior(theta: float):
    for value in GRID:
        sigma2 = exp(value) * theta**2
        # Closed form against closed form of the minimum: only the rounding of the search is left.
        assert kl_vbd(scalar(value)).item() == pytest.approx(kl_from_best_normal(theta, sigma2), abs=1e-9)


def test_vbd_has_the_slope_of_the_divergence_from_the_best_normal_prior():
    theta, h = 0.4, 1e-4
    for value in GRID:
        at = scalar(value)
        kl_vbd(at).backward()
        above, below = (kl_from_best_normal(theta, exp(value + shift) * theta**2) for shift in (h, -h))
        assert at.grad is not None
        assert at.grad.item() == pytest.approx((above - below) / (2 * h), abs=1e-6)


@pytest.mark.parametrize("kl", [kl_svd, kl_vbd])
def test_both_fall_to_zero_as_alpha_grows(kl):
    """The sign of VS eq. 6 as printed would make them rise: nothing would become sparse."""
    at = torch.linspace(-8, 8, 161, dtype=torch.float64, requires_grad=True)
    values = kl(at)
    (slope,) = torch.autograd.grad(values.sum(), at)
    assert (slope < 0).all()
    assert (values > 0).all()
    assert values[-1] < 1e-3


def test_svd_pulls_harder_than_vbd_but_not_in_the_tails():
    at = torch.tensor([-8.0, -1.26, 8.0], dtype=torch.float64, requires_grad=True)
    (svd,) = torch.autograd.grad(kl_svd(at).sum(), at)
    (vbd,) = torch.autograd.grad(kl_vbd(at).sum(), at)
    # The derivatives at log alpha = -1.26, rounded to three digits.
    assert -svd[1].item() == pytest.approx(0.626, abs=6e-4)
    assert -vbd[1].item() == pytest.approx(0.390, abs=6e-4)
    assert torch.allclose(svd[[0, 2]], vbd[[0, 2]], atol=5e-4)


def test_log_alpha_is_the_log_of_the_variance_over_the_squared_mean():
    weight = torch.tensor([0.5, -0.5, 2.0], dtype=torch.float64)
    log_sigma2 = torch.tensor([-3.0, -3.0, 1.0], dtype=torch.float64)
    expected = [log(exp(-3) / 0.25), log(exp(-3) / 0.25), log(exp(1) / 4)]
    # The 1e-8 that guards theta = 0 is 4e-8 of the smallest theta^2.
    assert log_alpha(weight, log_sigma2).tolist() == pytest.approx(expected, abs=1e-7)


def test_log_alpha_is_clipped_and_has_no_slope_outside():
    weight = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    log_sigma2 = torch.tensor([-9.0, 0.0, 9.0], dtype=torch.float64, requires_grad=True)
    clipped = log_alpha(weight, log_sigma2)
    assert clipped[[0, 2]].tolist() == [-8, 8]
    by_weight, by_variance = torch.autograd.grad(clipped.sum(), (weight, log_sigma2))
    assert by_weight[[0, 2]].tolist() == by_variance[[0, 2]].tolist() == [0, 0]
    assert by_weight[1].item() == pytest.approx(-2)
    assert by_variance[1].item() == pytest.approx(1)


@pytest.mark.parametrize("kl", [kl_svd, kl_vbd])
def test_a_weight_of_zero_has_a_finite_divergence_and_slope(kl):
    weight, log_sigma2 = torch.zeros(3, requires_grad=True), torch.full((3,), -20.0, requires_grad=True)
    value = kl(log_alpha(weight, log_sigma2)).sum()
    gradients = torch.autograd.grad(value, (weight, log_sigma2))
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kl", [kl_svd, kl_vbd])
def test_any_log_alpha_has_a_finite_divergence_and_slope(kl):
    """In float32: those of Bayesian compression are not clipped."""
    most = torch.finfo(torch.float32).max
    at = torch.tensor([-most, -1e4, -100.0, -30.0, 30.0, 100.0, 1e4, most], requires_grad=True)
    values = kl(at)
    (slopes,) = torch.autograd.grad(values.sum(), at)
    # Whatever the fit adds is constant there: 0.63576 for small alpha, nothing for large.
    shift = kl(torch.tensor(-100.0)).item() - 50
    expected = torch.cat([at.detach()[:4] / -2 + shift, torch.zeros(4)])
    torch.testing.assert_close(values.detach(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slopes, torch.tensor([-0.5] * 4 + [0.0] * 4), rtol=1e-6, atol=1e-6)


def test_the_log_dropout_rate_is_not_clipped():
    means = torch.tensor([1.0, 0.0, 1e-3])
    rates = log_dropout_rate(means, torch.tensor([-30.0, -9.0, 9.0]))
    assert rates.tolist() == pytest.approx([-30, -9 - log(1e-8), 9 - log(1e-6 + 1e-8)], rel=1e-5)


@pytest.mark.parametrize("kl", [kl_svd, kl_vbd])
def test_gradients_reach_means_and_variances(kl):
    numbers = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=numbers, dtype=torch.float64, requires_grad=True)
    log_sigma2 = torch.randn(4, 3, generator=numbers, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, s: kl(log_alpha(w, s)).sum(), (weight, log_sigma2))
