"""Bayesian compression: its KL by hand and by sampling, local reparametrisation, and pruning by whole inputs."""

from collections.abc import Callable
from math import exp, log, pi, sqrt

import pytest
import torch
import torch.nn.functional as F
from helpers.miniature import by_noise, convolutional, generator, method, normal, perceptron, randomise, split, step_of
from torch import Tensor, nn
from torch.func import functional_call

from kdx.measure.sparsity import Neurons, neurons
from kdx.methods.bayesian_compression import GroupConv2d, GroupLayer, GroupLinear, kl_standard_normal, widest_gap
from kdx.methods.variational import log_dropout_rate
from kdx.training.noise import NoiseSource

SAMPLES = 40_000
# In standard errors.
LIMIT = 5.0


def grouped(plain: nn.Linear | nn.Conv2d, limit: float | None = None, seed: int = 1) -> GroupLayer:
    """The substitute of a layer, every number of it random."""
    kind = GroupLinear if isinstance(plain, nn.Linear) else GroupConv2d
    layer = kind(randomise(plain, seed), -2.0, limit)
    with torch.no_grad():
        for number, (_, value) in enumerate(layer.named_parameters()):
            value.add_(0.4 * normal(*value.shape, seed=seed + number))
    return layer


def linear() -> tuple[GroupLayer, Tensor]:
    return grouped(nn.Linear(6, 4)), normal(3, 6, seed=5)


def convolution() -> tuple[GroupLayer, Tensor]:
    return grouped(nn.Conv2d(4, 6, (2, 3), stride=2, padding=1, groups=2)), normal(1, 4, 5, 5, seed=5)


def circular() -> tuple[GroupLayer, Tensor]:
    return grouped(nn.Conv2d(2, 3, (2, 3), padding=(1, 2), padding_mode="circular")), normal(1, 2, 3, 4, seed=5)


LAYERS = pytest.mark.parametrize("example", [linear, convolution, circular])


def by_weights(layer: GroupLayer, inputs: Tensor) -> Tensor:
    """Outputs (samples, batch, ...) with one draw of z, weights and biases for each sample."""
    numbers = generator(7)

    def draw(mean: Tensor, log_sigma2: Tensor) -> Tensor:
        return mean + torch.randn((1000, *mean.shape), generator=numbers) * torch.exp(log_sigma2 / 2)

    plain = layer.plain(20.0)

    def output(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # z on the weights, where the layer has it on its inputs.
        return functional_call(plain, {"weight": weight * layer.per_weight(z), "bias": bias}, (inputs,))

    outputs = []
    with torch.no_grad():
        for _ in range(SAMPLES // 1000):
            drawn = (
                draw(layer.z, layer.z_log_sigma2),
                draw(layer.weight, layer.weight_log_sigma2),
                draw(layer.bias, layer.bias_log_sigma2),
            )
            outputs.append(torch.func.vmap(output)(*drawn))
    return torch.cat(outputs)


@LAYERS
def test_mean_and_variance_are_those_of_sampled_weights(example: Callable[[], tuple[GroupLayer, Tensor]]):
    layer, inputs = example()
    weights, noise = by_weights(layer, inputs).double(), by_noise(layer, inputs, SAMPLES).double()
    variances, fourths = zip(
        *((x.var(dim=0), (x - x.mean(dim=0)).pow(4).mean(dim=0)) for x in (weights, noise)), strict=True
    )
    error_of_mean = torch.sqrt(sum(variances) / SAMPLES)
    assert ((weights.mean(dim=0) - noise.mean(dim=0)).abs() < LIMIT * error_of_mean).all()
    # The outputs are products of normal numbers, so the error of a variance comes from their fourth moment.
    errors = sum(fourth - variance.square() for fourth, variance in zip(fourths, variances, strict=True))
    assert ((variances[0] - variances[1]).abs() < LIMIT * torch.sqrt(errors / SAMPLES)).all()


def test_one_z_serves_all_outputs_of_an_example_and_no_other_example():
    layer = GroupLinear(nn.Linear(1, 2), -40.0, None)
    with torch.no_grad():
        layer.z_log_sigma2.fill_(0.0)
        layer.weight.fill_(1.0)
        layer.bias.zero_()
    noise = layer.new_noise(torch.ones(3, 1), torch.ones(3, 2))
    layer.draw(noise, generator(1))
    output = functional_call(layer, {"noise": noise}, (torch.ones(3, 1),))
    torch.testing.assert_close(output[:, 0], output[:, 1], rtol=0, atol=1e-3)
    torch.testing.assert_close(output[:, 0], 1 + noise[:, 0], rtol=0, atol=1e-3)
    assert output[:, 0].unique().numel() == 3


@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_without_noise_the_swap_changes_nothing(build: Callable[[], nn.Sequential]):
    plain, swapped = build(), method("bc").prepare(build())
    channels = 1 if hasattr(plain, "fc2") else 2
    images = normal(4, channels, 6, 6, seed=3)
    assert torch.equal(swapped(images), plain(images))
    # Nothing is pruned at a high threshold, and z is one.
    finished = method("bc", threshold=20.0).finalize(swapped)
    assert torch.equal(finished(images), plain(images))
    assert {type(layer) for layer in finished.modules()} == {type(layer) for layer in plain.modules()}


def test_the_divergence_from_a_standard_normal_by_sampling():
    mean, log_sigma2 = 0.7, -1.3
    draws = mean + exp(log_sigma2 / 2) * normal(1_000_000, seed=1, dtype=torch.float64)
    log_q = -0.5 * (log(2 * pi) + log_sigma2 + (draws - mean).square() / exp(log_sigma2))
    log_p = -0.5 * (log(2 * pi) + draws.square())
    sampled = (log_q - log_p).mean().item()
    error = (log_q - log_p).std().item() / sqrt(len(draws))
    exact = kl_standard_normal(torch.tensor(mean), torch.tensor(log_sigma2)).item()
    assert exact == pytest.approx(sampled, abs=4 * error)
    assert kl_standard_normal(torch.tensor(0.0), torch.tensor(0.0)).item() == 0.0


def of_scale(z: float, log_sigma2: float) -> float:
    """Molchanov et al. 2017, eq. 14, of one scale, whose log alpha is not clipped."""
    at = log_sigma2 - log(z * z + 1e-8)
    return 0.5 * log(1 + exp(-at)) + 0.63576 - 0.63576 / (1 + exp(-(1.87320 + 1.48695 * at)))


def test_the_kl_term_number_by_number():
    """In Python's floats, over every scale, weight and bias, with the first layer's variances limited."""
    how, examples = method("bc", clip_var=0.04), 50
    student = how.prepare(perceptron()).double()
    with torch.no_grad():
        for number, value in enumerate(student.parameters()):
            value.add_(2 * normal(*value.shape, seed=number, dtype=torch.float64))
    total = 0.0
    for name in ("fc1", "fc2"):
        layer = student.get_submodule(name)
        for z, log_sigma2 in zip(layer.z.tolist(), layer.z_log_sigma2.tolist(), strict=True):
            total += of_scale(z, log_sigma2)
        for kind in ("weight", "bias"):
            means = layer.get_parameter(kind).flatten().tolist()
            variances = layer.get_parameter(f"{kind}_log_sigma2").exp().flatten().tolist()
            for mean, variance in zip(means, variances, strict=True):
                limited = min(variance, 0.04) if (name, kind) == ("fc1", "weight") else variance
                total += 0.5 * (mean * mean + limited - log(limited) - 1)
    assert student.fc1.weight_log_sigma2.exp().max() > 0.04
    # Some lie where VS's weights are clipped.
    assert log_dropout_rate(student.fc1.z, student.fc1.z_log_sigma2).min() < -8
    given = split(8)
    objective = how.objective(student, None, examples)
    step = step_of(student, objective, given, student(given.images.double()))
    assert objective.terms["kl"].value(step).item() == pytest.approx(total / examples, rel=1e-6)


def test_the_kl_has_a_slope_at_the_initial_values():
    """They lie at log alpha = -9, where the clip of VS's weights would leave the scales where they are."""
    how, examples, h = method("bc"), 50, 1e-4
    student = how.prepare(perceptron())
    given = split(8)
    objective = how.objective(student, None, examples)
    objective.terms["kl"].value(step_of(student, objective, given, student(given.images))).backward()
    by_mean = (of_scale(1 + h, -9.0) - of_scale(1 - h, -9.0)) / (2 * h)
    by_variance = (of_scale(1.0, -9.0 + h) - of_scale(1.0, -9.0 - h)) / (2 * h)
    # Nearly those of -log(alpha) / 2.
    assert (by_mean, by_variance) == pytest.approx((1.0, -0.5), rel=1e-3)
    for layer in (student.fc1, student.fc2):
        assert layer.z.grad.tolist() == pytest.approx([by_mean / examples] * layer.inputs, rel=1e-5)
        assert layer.z_log_sigma2.grad.tolist() == pytest.approx([by_variance / examples] * layer.inputs, rel=1e-5)


def test_inputs_beyond_the_clip_of_single_weights_are_told_apart():
    """By the threshold and by the gap: both see the log alpha itself."""
    layer, _ = linear()
    with torch.no_grad():
        layer.z.fill_(1.0)
        layer.z_log_sigma2.copy_(torch.tensor([-20.0, -19.0, -12.0, -11.0, 9.0, 10.0]))
    assert layer.kept(-15.0).tolist() == [True, True, False, False, False, False]
    assert layer.kept(9.5).tolist() == [True, True, True, True, True, False]
    how = method("bc")
    student = how.prepare(perceptron())
    with torch.no_grad():
        student.fc2.z_log_sigma2.copy_(torch.tensor([-20.0, -19.0, -12.0, -11.0, -10.0]))
    gap = how.objective(student, None, 1).monitors["gap_fc2"]
    assert gap(dict(student.named_parameters())) == pytest.approx(-15.5)


def test_the_method_of_the_paper_has_the_whole_kl_from_the_first_step():
    """As the public code has it; kdx's own settings warm up."""

    def weights(name: str) -> list[float]:
        how = method(name)
        lambda_V = how.objective(how.prepare(perceptron()), None, 10).hyperparameters["lambda_V"]
        return [lambda_V(epoch) for epoch in (0.0, 5.0, 10.0, 100.0)]

    assert weights("paper/bc") == [1, 1, 1, 1]
    assert weights("bc") == [0, 0.5, 1, 1]


def test_a_limited_variance_does_not_grow():
    layer, inputs = grouped(nn.Linear(6, 4), limit=1e-12), torch.ones(2000, 6)
    with torch.no_grad():
        layer.z_log_sigma2.fill_(-40.0)
        layer.bias_log_sigma2.fill_(-40.0)
    noise = layer.new_noise(inputs, layer(inputs))
    layer.draw(noise, generator(1))
    # What is left is the floor under the square root, 1e-8.
    assert functional_call(layer, {"noise": noise}, (inputs,)).std(dim=0).max() < 2e-4


def prepared(thresholds: float | list[float]) -> tuple[nn.Module, nn.Module]:
    how = method("bc", threshold=thresholds)
    student = how.prepare(perceptron())
    with torch.no_grad():
        student.fc1.z_log_sigma2[:20] = 1.0
        student.fc2.z_log_sigma2[:2] = -4.0
        student.fc1.z.mul_(2.0)
    return student, how.finalize(student)


def test_pruned_inputs_are_exact_zeros_and_the_others_carry_their_scale():
    weight = perceptron().fc1.weight
    _, plain = prepared(-3.0)
    assert type(plain.fc1) is nn.Linear
    assert not plain.fc1.weight[:, :20].any()
    assert torch.equal(plain.fc1.weight[:, 20:], 2 * weight[:, 20:])
    assert neurons(plain) == [Neurons(36, 16), Neurons(5, 5)]


def test_a_neuron_that_is_no_input_any_more_has_no_weights_either():
    student = method("bc", threshold=-3.0).prepare(perceptron())
    with torch.no_grad():
        student.fc2.z_log_sigma2[:2] = 1.0
    plain = method("bc", threshold=-3.0).finalize(student)
    assert (plain.fc1.weight != 0).any(dim=1).tolist() == [False, False, True, True, True]
    assert (plain.fc1.bias != 0).tolist() == [False, False, True, True, True]


def test_dropout_between_two_layers_hides_no_neuron():
    how, network = method("bc", threshold=-3.0), perceptron()
    network.fc1_relu = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    student = how.prepare(network)
    with torch.no_grad():
        student.fc2.z_log_sigma2[:2] = 1.0
    assert (how.finalize(student).fc1.weight != 0).any(dim=1).tolist() == [False, False, True, True, True]


def test_every_layer_may_have_a_threshold_of_its_own():
    _, plain = prepared([20.0, -5.0])
    assert neurons(plain) == [Neurons(36, 36), Neurons(5, 3)]
    with pytest.raises(ValueError, match=r"method\.threshold: .* 2 weight matrices"):
        method("bc", threshold=[-3.0]).prepare(perceptron())


def test_a_grouped_convolution_loses_the_channel_and_no_other():
    layer, _ = convolution()
    with torch.no_grad():
        layer.z_log_sigma2.fill_(-20.0)
        layer.z_log_sigma2[2] = 3.0
    plain, images = layer.plain(-3.0), normal(2, 4, 5, 5, seed=3)
    blind = images.clone()
    blind[:, 2] = 0.0
    torch.testing.assert_close(plain(images), layer(blind))
    assert neurons(nn.Sequential(plain)) == [Neurons(4, 3)]


def test_the_widest_gap():
    assert widest_gap(torch.tensor([5.0, -4.0, -3.5, 4.0, -4.2])) == pytest.approx(0.25)


def test_noise_is_fresh_for_every_example_of_a_network():
    student = method("bc").prepare(perceptron())
    noise = NoiseSource(student, split(7).images, generator(1)).draw()
    assert {name: tuple(value.shape) for name, value in noise.items()} == {
        "fc1.noise": (7, 36 + 5),
        "fc2.noise": (7, 5 + 4),
    }
    output = functional_call(student, noise, (split(1).images.expand(7, 1, 6, 6),))
    assert output.unique(dim=0).shape[0] == 7
    assert F.softmax(output, dim=1).isfinite().all()
