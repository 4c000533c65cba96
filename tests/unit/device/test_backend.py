"""Where and how a run is executed: the decision to compile, and devices that are not there."""

import logging
from collections import OrderedDict
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.miniature import backend, convolutional, method, perceptron
from torch import nn

from kdx.config.compose import compose_config
from kdx.device.backend import full_float32, prepare_device
from kdx.errors import UserError, describe, is_expected
from kdx.storage.tensors import save_weights

MANY, FEW = 1_000_000, 10


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdx.device.backend.has_compiler", lambda: True)


@pytest.mark.usefixtures("compiler")
def test_a_short_training_is_not_compiled_and_the_log_says_so(caplog):
    with caplog.at_level(logging.INFO, "kdx.device.backend"):
        assert not replace(backend(), compile="auto").compiles(perceptron(), FEW)
    assert len([line for line in caplog.messages if line.startswith("not compiled: 10 steps")]) == 1
    assert replace(backend(), compile="auto").compiles(perceptron(), MANY)


@pytest.mark.usefixtures("compiler")
def test_variational_weights_make_compiling_worth_more():
    plain, noisy = perceptron(hidden=4000), method("svd").prepare(perceptron(hidden=4000))
    decisions = [
        [replace(backend(), compile="auto").compiles(student, steps) for steps in range(0, 100_000, 5000)]
        for student in (plain, noisy)
    ]
    assert sum(decisions[0]) < sum(decisions[1])
    assert all(sorted(decision) == decision for decision in decisions), "more steps never speak against it"


@pytest.mark.usefixtures("compiler")
def test_convolutions_are_not_compiled_unless_it_is_asked_for(caplog):
    with caplog.at_level(logging.INFO, "kdx.device.backend"):
        assert not replace(backend(), compile="auto").compiles(convolutional(), MANY)
    assert "not compiled: with convolutions" in caplog.text
    assert replace(backend(), compile=True).compiles(convolutional(), FEW)


@pytest.mark.parametrize("told", [("highest", False), ("high", True), ("medium", True)])
def test_full_float32_holds_whatever_the_process_was_told_and_gives_it_back(told: tuple[str, bool]):
    """Also on a CPU, where `medium` can mean bfloat16."""

    def state() -> tuple[str, bool, str]:
        products = torch.backends.mkldnn.matmul.fp32_precision
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, products

    torch.set_float32_matmul_precision(told[0])
    torch.backends.cudnn.allow_tf32 = told[1]
    before = state()
    assert before[:2] == told
    with full_float32():
        assert state() == ("highest", False, "ieee")
    assert state() == before
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert state() == before


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_auto_runs_eagerly_and_the_log_says_so(caplog):
    with caplog.at_level(logging.INFO, "kdx.device.backend"):
        assert not replace(backend(), compile="auto").compiles(perceptron(), MANY)
    assert "not compiled: there is no C++ compiler" in caplog.text


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_true_is_the_users_mistake():
    with pytest.raises(UserError, match=r"device\.compile: 'true' needs a C\+\+ compiler"):
        replace(backend(), compile=True).compiles(perceptron(), MANY)


@pytest.mark.usefixtures("compiler")
def test_true_and_false_are_obeyed():
    assert replace(backend(), compile=True).compiles(perceptron(), FEW)
    assert not replace(backend(), compile=False).compiles(perceptron(), MANY)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_the_users_mistake(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    settings = compose_config(["device=cpu"]).device.model_copy(update={"kind": kind})
    with pytest.raises(UserError, match=rf"'{kind}' is not available on this machine; allowed: cpu, auto"):
        prepare_device(settings)


def test_auto_takes_no_device_that_nobody_has_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert prepare_device(compose_config([]).device).device.type == "cpu"
    assert prepare_device(compose_config(["device=mps"]).device).device.type == "mps"


def test_a_graph_is_the_users_mistake_where_there_is_no_nvidia_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = compose_config([]).device.model_copy(update={"graph": True})
    with pytest.raises(UserError, match=r"^device\.graph: true needs an NVIDIA GPU, here is cpu only; allowed: "):
        prepare_device(settings)


@pytest.mark.parametrize(("graph", "captures"), [("auto", True), (True, True), (False, False)])
def test_on_cuda_steps_are_captured_unless_it_is_refused(graph, captures: bool):
    cuda = replace(backend(), device=torch.device("cuda"), graph=graph, compile="auto")
    assert cuda.captures is captures
    # What is captured is compiled only where it is asked for.
    assert cuda.compiles(perceptron(), MANY) is not captures
    assert replace(cuda, compile=True).compiles(perceptron(), FEW)
    assert not replace(backend(), graph=graph).captures


def test_convolutions_lie_channels_last_in_memory_and_compute_the_same():
    placed, left = backend().to_device(convolutional()), convolutional()
    assert placed.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert not placed.conv2.weight.is_contiguous()
    images = torch.rand(5, 2, 6, 6)
    assert placed.conv1(images).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(placed(images), left(images))


@pytest.mark.parametrize(("inputs", "size", "laid_out"), [(15, 1, False), (16, 1, True), (3, 3, True), (4, 1, False)])
def test_narrow_projections_keep_all_convolutions_as_they_are(inputs: int, size: int, laid_out: bool):
    """Of a strided one in channels_last the gradient is wrong, or the process is killed (oneDNN issue 6035)."""
    narrow = nn.Conv2d(inputs, 24, size, stride=2)
    network = backend().to_device(nn.Sequential(OrderedDict(first=nn.Conv2d(3, inputs, 3, padding=1), second=narrow)))
    assert network.first.weight.is_contiguous() is not laid_out
    reference = deepcopy(network).double().to(memory_format=torch.contiguous_format)
    images = torch.rand(32, 3, 32, 32)
    for _ in range(3):
        network.zero_grad()
        network(images).square().sum().backward()
    reference(images.double()).square().sum().backward()
    for found, expected in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-2)


def test_a_perceptron_stays_as_it_is():
    network = perceptron()
    before = [parameter.stride() for parameter in network.parameters()]
    assert backend().to_device(network) is network
    assert [parameter.stride() for parameter in network.parameters()] == before


def test_the_layout_in_memory_is_not_that_of_files(tmp_path: Path):
    network = backend().to_device(convolutional())
    save_weights(tmp_path / "weights.safetensors", network)
    save_weights(tmp_path / "plain.safetensors", convolutional())
    assert (tmp_path / "weights.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


def test_a_full_gpu_is_told_in_one_line_with_what_to_make_smaller():
    failure = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."
    )
    assert is_expected(failure)
    assert describe(failure) == (
        "the GPU's memory is full (tried to allocate 2.50 GiB); try a smaller trainer.batch_size"
        " (teacher.trainer.batch_size while a teacher is trained), hydra.launcher.max_models with hydra/launcher=fused,"
        " or device=cpu"
    )
    assert not is_expected(RuntimeError("CUDA out of memory"))


def test_denormals_are_flushed_to_zero():
    """Weights on their way to zero would otherwise slow a CPU down by a factor of ten."""
    prepare_device(engine_settings())
    smallest = torch.tensor([torch.finfo(torch.float32).tiny])
    assert (smallest / 4).item() == 0


def engine_settings():
    return compose_config(["device=cpu", "device.threads=1", "device.gemm=default"]).device


def test_precision_and_device_are_recorded():
    assert backend().autocast is None
    assert replace(backend(), precision="bf16").autocast == "cpu"
    record = backend().record()
    assert (record["device"], record["threads"], record["precision"], record["gemm"]) == ("cpu", 1, "fp32", "default")
