"""A training step never waits for the device: on torch's device `meta`, whose tensors have no numbers.

Whatever reads a number or depends on one fails there; tensors that come from the CPU or go there are caught here.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Literal

import pytest
import torch
from helpers.miniature import CLASSES, method_and_procedure, perceptron
from helpers.networks import IMAGE, network, student_and_sampler
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdx.data.dataset import Split
from kdx.measure.accuracy import count_errors
from kdx.measure.sparsity import nonzero_count
from kdx.training import step as steps
from kdx.training.noise import NoiseSource
from kdx.training.optimizer import ADAM, Optimizer
from kdx.training.state import State, stacked
from kdx.training.step import Batch, Stacking, hyperparameter_names, make_step

BATCH = 8


class Crossing(TorchDispatchMode):
    """Fails where an operation has to do with two devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        # A Python number may come as a tensor without dimensions, which elementwise kernels take by value; all but
        # `where`, which copies it.
        if torch.Tag.pointwise in func.tags and "where" not in func.name():
            tensors = [tensor for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"]
        devices = {tensor.device.type for tensor in tensors}
        assert len(devices) < 2, f"{func} waits, or makes a copy from the CPU's memory"
        return result


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no fake of Adam's kernel; its arguments are checked in its place."""

    def adam(*lists: list[Tensor], lr: Tensor, found_inf: Tensor, **_: object) -> None:
        for tensor in (*tree_leaves(lists), lr, found_inf):
            assert tensor.device.type == "meta"
            assert tensor.dtype == torch.float32
        parameters, gradients, first, second, *_ = lists
        for each in zip(parameters, gradients, first, second, strict=True):
            assert len({tensor.stride() for tensor in each}) == 1
        assert lr.dim() == found_inf.dim() == 0

    monkeypatch.setattr(torch, "_fused_adam_", adam)
    # Weights are not drawn: a CPU's generator would refuse.
    monkeypatch.setattr("helpers.miniature.randomise", lambda network, seed, scale=0.3: network)


CASES = [
    *((name, perceptron) for name in ("vanilla", "kd", "kd-dropout", "svd", "st-vbd", "bc", "sgld", "noisy")),
    *((name, perceptron) for name in ("noisy-student", "soft-labels", "kd-mixture", "kddp")),
    ("bdk", student_and_sampler),
    *(("kd", network(family)) for family in ("lenet", "vgg", "nin", "resnet", "densenet", "keras-resnet", "kddp")),
    ("st-vbd", network("lenet")),
    ("bc", network("vgg")),
]


def step_on_fakes(
    name: str,
    build: Callable[[], nn.Module],
    *,
    models: int = 1,
    eager: bool = True,
    optimizer: Optimizer = ADAM,
    smoothing: float = 0.0,
    **settings: bool,
) -> None:
    how, _ = method_and_procedure(name, **settings)
    shape = IMAGE if build.__name__ == "<lambda>" else (1, 6, 6)
    with torch.device("meta"):
        student = how.prepare(build()).to(memory_format=torch.channels_last)
        objective = how.objective(student, perceptron(hidden=9), 32).with_label_smoothing(smoothing)
        examples = Split(torch.empty(32, *shape), torch.empty(32, dtype=torch.int64), mirror="random", shift=1)
        logits = torch.empty(32 * examples.views, CLASSES, dtype=torch.float16)
        chosen, row = torch.empty(BATCH, dtype=torch.int64), torch.ones(len(hyperparameter_names(objective, optimizer)))
        noise = NoiseSource(student, torch.empty(BATCH, *shape), torch.Generator(), objective.noise_specs).buffers
        state = State.of(student, len(objective.terms), objective.langevin, average=optimizer.averages)
        stacking = None
        if models > 1:
            state, noise, row = State.stack([state] * models), stacked([noise] * models), torch.stack([row] * models)
            stacking = Stacking(False, False)
    step = make_step(student, objective, eager=eager, autocast=None, stacking=stacking, optimizer=optimizer)
    with Crossing():
        step(state, Batch(*examples.take(chosen), logits.index_select(0, chosen).float()), noise, row)


@pytest.mark.parametrize(("name", "build"), CASES)
def test_no_step_waits_for_the_device(name: str, build: Callable[[], nn.Module]):
    step_on_fakes(name, build)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("name", ["kd", "st-vbd", "kd-dropout", "sgld"])
def test_nor_does_a_step_of_several_models(name: str, eager: bool):
    step_on_fakes(name, perceptron, models=3, eager=eager)


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_nor_does_any_option_of_the_trainer(kind: Literal["adam", "sgd"], models: int):
    optimizer = Optimizer(kind, decays=("fc1.weight", "fc2.weight"), averages=True)
    for name in ("kd", "kd-mixture", "kd-vbd"):
        step_on_fakes(name, perceptron, models=models, optimizer=optimizer, smoothing=0.1)
    step_on_fakes("kd", network("keras-resnet"), models=models, optimizer=Optimizer(kind, averages=True))


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("settings", [{"standardize": True}, {"decoupled": True}])
def test_nor_does_any_option_of_the_hint(settings: dict[str, bool], models: int):
    step_on_fakes("kd", perceptron, models=models, **settings)


@pytest.mark.parametrize(("name", "build"), [case for case in CASES if case[0] != "bdk"])
def test_nobody_waits_to_ask_for_the_figures_of_an_epoch(name: str, build: Callable[[], nn.Module]):
    """Several models are asked before the first answer is read."""
    how, _ = method_and_procedure(name)
    shape = IMAGE if build.__name__ == "<lambda>" else (1, 6, 6)
    with torch.device("meta"):
        student = how.prepare(build())
        examples = Split(torch.empty(5, *shape), torch.empty(5, dtype=torch.int64))
        with Crossing():
            plain = how.finalize(deepcopy(student))
            figures = nonzero_count(plain), count_errors(plain, examples)
    assert [figure.device.type for figure in figures] == ["meta", "meta"]


def test_a_step_that_waits_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """Whichever way: by reading a number, or by copying one from pageable memory."""
    original = steps._count

    def reading(state: State, values: Tensor) -> Tensor:
        assert values.sum().item() < 1e9
        return original(state, values)

    def copying(state: State, values: Tensor) -> Tensor:
        return original(state, values * torch.ones(1, device="cpu").to("meta"))

    for waiting, error in ((reading, RuntimeError), (copying, AssertionError)):
        monkeypatch.setattr(steps, "_count", waiting)
        with pytest.raises(error):
            step_on_fakes("kd", perceptron)
