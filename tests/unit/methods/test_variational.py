"""The variational part of a method: swap, KL term with its warm-up, rates, and the way back to plain layers."""

from copy import deepcopy
from math import exp

import pytest
import torch
from helpers.miniature import CLASSES, convolutional, method, normal, perceptron, split, step_of
from helpers.networks import settings
from torch import Tensor, nn

from kdx.methods.variational import KL, VariationalLayer, kl_svd, log_alpha
from kdx.models import build_model

THRESHOLD = 2.5
PLAIN = {nn.Sequential, nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity}


def full_size(name: str) -> nn.Sequential:
    return build_model(settings(name), (1, 28, 28), 10, seed=0)


NETWORKS = {
    "perceptron": (perceptron, (3, 1, 6, 6)),
    "convolutional": (convolutional, (3, 2, 6, 6)),
    "mlp": (lambda: full_size("lenet-300-100"), (3, 1, 28, 28)),
    "lenet": (lambda: full_size("lenet5-caffe"), (3, 1, 28, 28)),
}
EVERY_NETWORK = pytest.mark.parametrize("network", NETWORKS)


def variational_layers(student: nn.Module) -> dict[str, VariationalLayer]:
    return {name: layer for name, layer in student.named_modules() if isinstance(layer, VariationalLayer)}


def spread(student: nn.Module, seed: int = 3) -> None:
    """Give every weight a variance of its own, so that log alpha lies on both sides of the threshold."""
    for layer in variational_layers(student).values():
        with torch.no_grad():
            beyond = normal(*layer.weight.shape, seed=seed) * 3
            # No closer to the threshold than rounding could decide.
            beyond += 0.01 * beyond.sign()
            layer.log_sigma2.copy_(torch.log(layer.weight.square() + 1e-8) + THRESHOLD + beyond)


@EVERY_NETWORK
def test_the_swap_keeps_the_output_and_reaches_every_weight(network: str):
    build, shape = NETWORKS[network]
    plain, images = build(), normal(*shape, seed=2)
    before = plain(images)
    student = method("svd").prepare(deepcopy(plain))
    assert torch.equal(student(images), before)
    expected = [name for name, layer in plain.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert list(variational_layers(student)) == expected


def test_the_swap_reaches_nested_layers():
    student = method("vbd").prepare(nn.Sequential(nn.Sequential(nn.Sequential(perceptron(), nn.ReLU()))))
    assert len(variational_layers(student)) == 2


def test_a_swap_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"no nn\.Linear and no nn\.Conv2d"):
        method("svd").prepare(nn.Sequential(nn.Flatten(), nn.ReLU()))


@pytest.mark.parametrize("name", ["svd", "vbd", "bc"])
def test_a_network_that_pads_otherwise_is_swapped_and_finished(name: str):
    plain = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)
    )
    images, how = normal(3, 2, 5, 5, seed=1), method(name, threshold=8.0, log_sigma2_init=-20.0)
    student = how.prepare(deepcopy(plain))
    assert torch.equal(student(images), plain(images))
    final = how.finalize(student)
    assert [layer.padding_mode for layer in final if isinstance(layer, nn.Conv2d)] == ["reflect", "zeros"]
    assert torch.equal(final(images), plain(images))


def test_variances_begin_where_the_method_says():
    student = method("svd", log_sigma2_init=-6.0).prepare(perceptron())
    assert all((layer.log_sigma2 == -6).all() for layer in variational_layers(student).values())


def masked(plain: nn.Module, student: nn.Module) -> nn.Module:
    """`plain` with zeros where sigma^2 / theta^2 reaches exp(threshold), computed from the definition."""
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    for name, layer in variational_layers(student).items():
        theta, sigma2 = layer.weight.detach().double(), layer.log_sigma2.detach().double().exp()
        state[f"{name}.weight"][sigma2 >= exp(THRESHOLD) * (theta.square() + 1e-8)] = 0.0
    result = deepcopy(plain)
    result.load_state_dict(state)
    return result


@EVERY_NETWORK
def test_finalize_is_masking(network: str):
    build, shape = NETWORKS[network]
    plain, images, how = build(), normal(*shape, seed=2), method("st-vbd", threshold=THRESHOLD)
    student = how.prepare(deepcopy(plain))
    spread(student)
    expected = masked(plain, student)
    final = how.finalize(student)

    assert list(final.state_dict()) == list(plain.state_dict())
    for name, value in final.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert torch.equal(final(images), expected(images))
    zeros = [(layer.weight == 0).float().mean().item() for layer in final.modules() if hasattr(layer, "weight")]
    assert all(0 < share < 1 for share in zeros), "the test prunes some weights of every matrix and keeps others"


@EVERY_NETWORK
@pytest.mark.parametrize("name", ["vanilla", "dropout", "kd", "kd-dropout", "svd", "vbd", "kd-svd", "st-svd", "st-vbd"])
def test_finalize_leaves_plain_layers_only(network: str, name: str):
    how, plain = method(name), NETWORKS[network][0]()
    final = how.finalize(how.prepare(deepcopy(plain)))
    assert {type(module) for module in final.modules()} <= PLAIN
    assert list(final.state_dict()) == list(plain.state_dict())
    assert list(dict(final.named_parameters())) == list(dict(plain.named_parameters()))


def test_finalize_keeps_the_geometry_of_convolutions():
    how, plain = method("svd"), convolutional()
    final = how.finalize(how.prepare(deepcopy(plain)))
    for name in ("conv1", "conv2"):
        one, other = plain.get_submodule(name), final.get_submodule(name)
        for key in (
            "stride",
            "padding",
            "dilation",
            "groups",
            "in_channels",
            "out_channels",
            "kernel_size",
            "padding_mode",
        ):
            assert getattr(one, key) == getattr(other, key), key
    assert final.get_submodule("conv1").bias is None


def test_a_finalized_network_shares_no_memory_with_what_was_trained():
    how = method("svd")
    student = how.prepare(perceptron())
    layers = list(variational_layers(student).values())
    final = how.finalize(student)
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in final.parameters())


@pytest.mark.parametrize(("log_sigma2", "threshold"), [(10.0, 8.0), (-40.0, -8.0)])
def test_a_log_alpha_of_exactly_the_threshold_is_pruned(log_sigma2: float, threshold: float):
    """The clip at 8 makes equality common: a weight that is all noise must go even there."""
    how = method("svd", log_sigma2_init=log_sigma2, threshold=threshold)
    final = how.finalize(how.prepare(perceptron()))
    assert not final.fc1.weight.any()
    assert final.fc1.bias.all()


def divergence(student: nn.Module, name: str) -> float:
    """The KL of every weight, one layer after another, in float64 and undivided."""
    layers = variational_layers(student).values()
    return sum(KL[name](log_alpha(layer.weight.double(), layer.log_sigma2.double())).sum().item() for layer in layers)


@pytest.mark.parametrize("name", ["svd", "vbd"])
@pytest.mark.parametrize("network", ["perceptron", "convolutional"])
def test_the_term_is_the_sum_over_weights_divided_by_the_examples_once(name: str, network: str):
    how = method(name)
    student = how.prepare(NETWORKS[network][0]())
    spread(student)
    values = {}
    for examples in (1, 60_000):
        objective = how.objective(student, None, examples)
        step = step_of(student, objective, split(3), torch.zeros(3, CLASSES), time=100.0)
        values[examples] = objective.terms["kl"].value(step).item()
    # Sums of some 200 float32 numbers.
    assert values[1] == pytest.approx(divergence(student, name), rel=1e-5)
    assert values[60_000] == pytest.approx(values[1] / 60_000, rel=1e-6)


def test_the_total_has_the_term_times_lambda_alone():
    how = method("svd", lambda_V=3.0)
    student, examples = how.prepare(perceptron()), split(7)
    objective = how.objective(student, None, 50)
    step = step_of(student, objective, examples, student(examples.images), time=100.0)
    total, terms = objective.loss(step)
    entropy, kl = (terms[list(objective.terms).index(name)].item() for name in ("cross_entropy", "kl"))
    assert kl == pytest.approx(divergence(student, "svd") / 50, rel=1e-5)
    assert total.item() == pytest.approx(entropy + 3 * kl, rel=1e-6)


def test_the_term_reads_the_parameters_of_the_step():
    """Not those of the module: the step is a function of its arguments."""
    how = method("svd")
    student = how.prepare(perceptron())
    objective = how.objective(student, None, 1)
    step = step_of(student, objective, split(3), torch.zeros(3, CLASSES))
    others: dict[str, Tensor] = {name: torch.ones_like(value) for name, value in step.parameters.items()}
    step.parameters.update(others)  # type: ignore[attr-defined]
    weights = sum(layer.weight.numel() for layer in variational_layers(student).values())
    expected = weights * kl_svd(torch.tensor(1.0)).item()
    assert objective.terms["kl"].value(step).item() == pytest.approx(expected, rel=1e-5)


def test_warm_up():
    warmed_up = method("svd", lambda_V=4.0, warmup_start=5.0, warmup_end=20.0).objective(
        method("svd").prepare(perceptron()), None, 10
    )
    lambda_V = warmed_up.hyperparameters["lambda_V"]
    assert [lambda_V(epoch) for epoch in (0, 5, 12.5, 20, 100)] == [0, 0, 2, 4, 4]


def test_warm_up_of_no_length_is_a_switch():
    part = method("svd", lambda_V=4.0, warmup_start=5.0, warmup_end=5.0).modifiers[1]
    lambda_V = part.hyperparameters()["lambda_V"]
    assert [lambda_V(epoch) for epoch in (0, 4.99, 5, 100)] == [0, 0, 4, 4]


def test_variances_alone_learn_at_a_rate_of_their_own():
    how = method("vbd", log_sigma2_lr=5.0)
    student = how.prepare(perceptron())
    objective = how.objective(student, None, 10)
    assert objective.lr_multipliers == {"fc1.log_sigma2": "log_sigma2_lr", "fc2.log_sigma2": "log_sigma2_lr"}
    assert objective.hyperparameters["log_sigma2_lr"](0.0) == objective.hyperparameters["log_sigma2_lr"](50.0) == 5
