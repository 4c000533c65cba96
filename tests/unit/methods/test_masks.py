"""Which weights are removed: by one factor for all layers, by a fraction of each, and how the fraction grows."""

from math import isfinite

import pytest
import torch
from helpers.masks import kept, no_bit_set
from helpers.miniature import normal, perceptron
from torch import Tensor

from kdx.measure.footprint import weight_matrices
from kdx.procedures.pruning import (
    cubic_sparsity,
    masks_by_fraction,
    masks_by_layer,
    masks_by_quality,
    prune,
)


def test_the_threshold_is_q_times_the_deviation_of_the_survivors():
    # The deviation of 1, -1, 3, -3 is sqrt(5) = 2.236, with the removed zeros it would be 1.826.
    weights = {"a": torch.tensor([1.0, -1.0, 3.0, -3.0, 0.0, 0.0]), "b": torch.tensor([[0.02, -0.02]])}
    found = masks_by_quality(weights, 1.0)
    assert found["a"].tolist() == [False, False, True, True, False, False]
    # Exactly at the threshold is not below it.
    assert found["b"].tolist() == [[True, True]]
    assert masks_by_quality(weights, 0.45)["a"].tolist() == [False, False, True, True, False, False]
    assert masks_by_quality(weights, 0.44)["a"].tolist() == [True, True, True, True, False, False]


def layers(seed: int = 0) -> dict[str, Tensor]:
    """Three layers of very different scale."""
    shapes = {"a": (40, 30), "b": (8, 5, 3, 3), "c": (10, 8)}
    return {
        name: 10.0**-place * normal(*shape, seed=seed + place) for place, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("keep", [0.133, 0.5, 0.9, 1.0])
def test_one_quality_factor_for_all_layers_keeps_the_fraction(keep: float):
    weights = layers()
    total = sum(weight.numel() for weight in weights.values())
    found, q = masks_by_fraction(weights, keep)
    assert kept(found) == round(keep * total)
    # The same criterion, layer by layer, in float64.
    for name, weight in weights.items():
        threshold = q * weight.double().std(correction=0)
        assert (weight.double().abs()[found[name]] >= threshold * (1 - 1e-6)).all()
        assert (weight.double().abs()[~found[name]] < threshold * (1 + 1e-6)).all()
        assert found[name].shape == weight.shape
    # The factor is the one that bisection finds.
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        enough = kept(masks_by_quality(weights, middle)) >= round(keep * total)
        low, high = (middle, high) if enough else (low, middle)
    assert q == pytest.approx(low, rel=1e-6)


def test_equal_weights_do_not_blur_the_number():
    weights = {"a": torch.tensor([[1.0, -1.0] * 10]), "b": torch.ones(3, 10)}
    assert kept(masks_by_fraction({"a": weights["a"]}, 0.35)[0]) == 7
    found = masks_by_layer(weights, {"a": 0.25, "b": 0.9})
    assert (kept({"a": found["a"]}), kept({"b": found["b"]})) == (15, 3)


def test_a_layer_without_survivors_stays_so():
    weights = {"a": torch.zeros(4, 5), "b": normal(4, 5, seed=1)}
    found, _ = masks_by_fraction(weights, 0.25)
    assert (int(found["a"].sum()), int(found["b"].sum())) == (0, 10)
    assert not masks_by_quality(weights, 0.1)["a"].any()


def test_a_single_survivor_goes_last():
    """Its layer's deviation is zero, which no multiple of it exceeds."""
    weights = {"a": torch.zeros(10, 50), "b": normal(100, 100, seed=1)}
    weights["a"][3, 7] = 0.01
    found, q = masks_by_fraction(weights, 0.01)
    assert found["a"].nonzero().tolist() == [[3, 7]]
    assert int(found["b"].sum()) == 104
    assert torch.equal(found["b"], masks_by_quality(weights, q)["b"])
    assert isfinite(masks_by_fraction(weights, 0.0001)[1])


def test_each_layer_loses_its_smallest_weights():
    weights = {"a": torch.tensor([[0.1, -0.4], [0.3, -0.2]]), "b": torch.tensor([[5.0, -6.0]])}
    found = masks_by_layer(weights, {"a": 0.5, "b": 0.5})
    assert found["a"].tolist() == [[False, True], [True, False]]
    assert found["b"].tolist() == [[False, True]]


@pytest.mark.parametrize(("step", "expected"), [(0, 0.2), (5, 0.2 + 0.7 * 0.875), (10, 0.9), (1, 0.9 - 0.7 * 0.729)])
def test_the_cubic_schedule(step: int, expected: float):
    assert cubic_sparsity(0.2, 0.9, step, 10) == pytest.approx(expected, abs=1e-12)


def test_pruned_weights_are_positive_zeros():
    network = perceptron()
    found, _ = masks_by_fraction(weight_matrices(network), 0.3)
    before = {name: weight.clone() for name, weight in weight_matrices(network).items()}
    prune(network, found)
    for name, weight in weight_matrices(network).items():
        assert no_bit_set(weight[~found[name]])
        assert torch.equal(weight[found[name]], before[name][found[name]])
