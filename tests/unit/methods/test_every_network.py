"""What the methods do to every family of networks: substitute its layers, train it by the pure step, make it plain."""

from copy import deepcopy

import pytest
import torch
from helpers.miniature import BOTH_WAYS, generator, method, normal
from helpers.networks import CLASSES, IMAGE, SETTINGS, small
from helpers.trainings import row
from torch import Tensor, nn
from torch.func import functional_call

from kdx.methods.distillation import CrossEntropy
from kdx.methods.method import Method
from kdx.methods.variational import VariationalLayer
from kdx.models.blocks import Dense, GlobalAverage, Residual
from kdx.models.layers import NoisyDropout
from kdx.models.surgery import replace_layers
from kdx.storage.tensors import load_weights, save_weights
from kdx.training.noise import NoiseSource
from kdx.training.state import State
from kdx.training.step import Batch, make_step

EVERY_FAMILY = pytest.mark.parametrize("family", SETTINGS)
WITH_BATCH_NORM = ["resnet", "densenet", "keras-resnet", "kddp"]
PLAIN = {
    nn.Sequential, nn.Linear, nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten,
    GlobalAverage, nn.Identity, nn.BatchNorm2d, nn.ZeroPad2d, Residual, Dense,
}  # fmt: skip


def batch(index: int = 0) -> Batch:
    labels = torch.randint(CLASSES, (6,), generator=generator(index))
    return Batch(normal(6, *IMAGE, seed=index), labels, normal(6, CLASSES, seed=index + 50))


def trained(how: Method, student: nn.Module, eager: bool, lr: float = 1e-3) -> State:
    """`student`, prepared, after a few steps."""
    objective = how.objective(student, small("lenet", seed=9), 6)
    noise = NoiseSource(student, batch().images, generator(1))
    state = State.of(student, len(objective.terms))
    step = make_step(student, objective, eager=eager, autocast=None)
    for index in range(3):
        step(state, batch(index), noise.draw(), row(objective, index + 1, lr))
    return state


@EVERY_FAMILY
@pytest.mark.parametrize("name", ["vanilla", "dropout", "st-vbd", "st-svd", "bc"])
def test_methods_train_it_and_give_it_back_plain(family: str, name: str, tmp_path):
    how, plain = method(name), small(family)
    student = how.prepare(deepcopy(plain))
    assert torch.equal(student.eval()(batch().images), plain.eval()(batch().images))
    student.train()
    trained(how, student, eager=True)
    finished = how.finalize(student)
    assert {type(layer) for layer in finished.modules()} <= PLAIN
    # What is saved is loaded into a network from the same settings.
    save_weights(tmp_path / "student.safetensors", finished)
    loaded = load_weights(tmp_path / "student.safetensors", small(family, seed=1))
    assert torch.equal(loaded.eval()(batch().images), finished.eval()(batch().images))
    assert all(not torch.equal(value, plain.get_parameter(name)) for name, value in finished.named_parameters())


@EVERY_FAMILY
def test_every_weight_becomes_variational_and_every_relu_gets_dropout(family: str):
    plain = small(family)
    matrices = [name for name, layer in plain.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    variational = method("vbd").prepare(deepcopy(plain))
    assert [name for name, layer in variational.named_modules() if isinstance(layer, VariationalLayer)] == matrices
    count = {kind: sum(isinstance(layer, kind) for layer in plain.modules()) for kind in (nn.ReLU, nn.Dropout)}
    dropped = method("dropout", dropout=0.4, input_dropout=0.2).prepare(deepcopy(plain))
    masks = [layer.rate for layer in dropped.modules() if isinstance(layer, NoisyDropout)]
    assert masks[0] == 0.2
    assert (masks.count(0.4), masks.count(0.5)) == (count[nn.ReLU], count[nn.Dropout])
    assert not any(isinstance(layer, nn.Dropout) for layer in dropped.modules())


@EVERY_FAMILY
def test_both_ways_to_take_a_step_do_the_same(family: str):
    how, results = method("st-vbd"), []
    for eager in (True, False):
        student = how.prepare(small(family))
        # Adam would blow up the rounding of gradients that are zero, such as those of biases before a batch norm.
        results.append(trained(how, student, eager, lr=0.0).tensors())
    for name, value in results[0].items():
        torch.testing.assert_close(
            value, results[1][name], rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name} {text}"
        )


@BOTH_WAYS
@pytest.mark.parametrize("family", WITH_BATCH_NORM)
def test_batch_norm_follows_the_batches_as_in_a_usual_loop(family: str, eager: bool):
    how = Method("vanilla", (CrossEntropy(),))
    usual, student = small(family), small(family)
    state = State.of(student, 1)
    objective = how.objective(student, None, 6)
    step = make_step(student, objective, eager=eager, autocast=None)
    before = {name: value.clone() for name, value in usual.named_buffers()}
    for index in range(3):
        usual(batch(index).images)
        step(state, batch(index), {}, row(objective, index + 1, 0.0))
    assert before.keys() == state.buffers.keys()
    for name, value in usual.named_buffers():
        assert not torch.equal(value, before[name])
        torch.testing.assert_close(student.get_buffer(name), value, msg=lambda text, name=name: f"{name} {text}")
        assert state.tensors()[f"buffer/{name}"].data_ptr() == student.get_buffer(name).data_ptr()


class Doubled(nn.Module):
    """What dropout at rate 0.5 does to inputs that it keeps."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * inputs


@BOTH_WAYS
def test_an_architectures_own_dropout_draws_outside_of_the_step(eager: bool):
    how = Method("vanilla", (CrossEntropy(),))
    student = how.prepare(small("vgg"))
    objective = how.objective(student, None, 6)
    step = make_step(student, objective, eager=eager, autocast=None)
    noise = NoiseSource(student, batch().images, generator(3))
    assert list(noise.buffers) == ["dropout1.noise", "fc1_dropout.noise"]

    def loss(masks: dict[str, Tensor]) -> float:
        state = State.of(student, 1)
        step(state, batch(), masks, row(objective, 1, 0.0))
        return state.sums[0].item()

    all_kept = {name: torch.full_like(mask, -(2**15)) for name, mask in noise.buffers.items()}
    doubling = small("vgg")
    replace_layers(doubling, lambda layer: Doubled() if isinstance(layer, nn.Dropout) else None)
    expected = nn.functional.cross_entropy(doubling(batch().images), batch().labels).item()
    assert loss(all_kept) == pytest.approx(expected, rel=1e-5)
    drawn = {name: mask.clone() for name, mask in noise.draw().items()}
    torch.manual_seed(0)
    assert loss(drawn) == loss(drawn) != pytest.approx(expected, rel=1e-5)
    assert loss({name: mask.clone() for name, mask in noise.draw().items()}) != loss(drawn)


def test_an_architectures_own_dropout_keeps_half():
    student = Method("vanilla", (CrossEntropy(),)).prepare(small("vgg"))
    noise = NoiseSource(student, normal(2000, *IMAGE, seed=0), generator(3))
    layer, ones = student.get_submodule("fc1_dropout"), torch.ones(2000, 7)
    kept = functional_call(layer, {"noise": noise.draw()["fc1_dropout.noise"]}, (ones,))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert kept.mean().item() == pytest.approx(1.0, abs=0.04)
