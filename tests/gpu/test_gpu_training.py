"""Training on a GPU: captured as one by one, resumed as undisturbed, together as alone, never waiting."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.miniature import CLASSES, method, method_and_procedure, normal, perceptron, split
from helpers.networks import IMAGE, network, small, student_and_sampler
from torch import nn

from kdx.config.compose import compose_config
from kdx.config.schema import TrainerSettings
from kdx.data.dataset import Data, Split
from kdx.device.backend import Backend, prepare_device
from kdx.device.cuda_graphs import AHEAD, CudaGraphs
from kdx.device.execution import Execution
from kdx.errors import Interrupted
from kdx.measure.accuracy import logits_of
from kdx.methods.fit import FitSpec, TrainingInputs, fit
from kdx.methods.procedure import FitResult
from kdx.runs.folder import RunFolder
from kdx.storage.tensors import load_tensors
from kdx.sweep.fused_runs import Fit, fit_fused
from kdx.training.checkpoint import Progress
from kdx.training.chunks import TRIAL_PLAYS
from kdx.training.learner import TrainSpec
from kdx.training.stacked import FusionMode
from kdx.training.trainer import _Loop, train

EXAMPLES, BATCH, EPOCHS = 1200, 32, 3
STEPS = EXAMPLES // BATCH
# Sums of products are rounded in another order, and each step goes on from the last one's rounding.
CLOSE = {"rel": 2e-3, "abs": 1e-5}


def backend(**settings: str | bool) -> Backend:
    words = [f"device.{key}={str(value).lower()}" for key, value in settings.items()]
    return prepare_device(compose_config(["device=cuda", *words]).device)


def examples_of(shape: tuple[int, ...], channels_of: int = EXAMPLES) -> Split:
    """Images whose label is a linear function of them, so that there is something to learn."""
    images = normal(channels_of, *shape, seed=1)
    answers = images.flatten(1) @ normal(images[0].numel(), CLASSES, seed=2)
    return Split(images, answers.argmax(dim=1))


@dataclass
class Trained:
    """What one training left."""

    progress: Progress
    checkpoint: dict[str, torch.Tensor]
    student: nn.Module

    def losses(self) -> list[float]:
        return [row["loss"] or 0.0 for row in self.progress.history]


def trained(
    folder: Path, how: Backend, name: str = "st-vbd", build: Callable[[], nn.Module] = perceptron, **trainer: float
) -> Trained:
    chosen, _ = method_and_procedure(name)
    shape = IMAGE if build.__name__ == "<lambda>" else (1, 6, 6)
    examples = examples_of(shape).to(how.device)
    student = how.to_device(chosen.prepare(build()))
    objective = chosen.objective(student, perceptron(hidden=9, seed=1).to(how.device), EXAMPLES)
    values = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 1e-3, "hold": 0.5, "patience": None}
    settings = TrainerSettings(**(values | {"checkpoint_seconds": 1e9} | trainer))
    logits = normal(EXAMPLES, CLASSES, seed=4).to(how.device)
    given = partial(
        TrainSpec,
        title="miniature",
        identity="it",
        examples=examples,
        teacher_logits=logits,
        trainer=settings,
        seed=0,
        checkpoint=folder / "checkpoint",
    )
    progress = train(given(student, objective, lambda epoch: dict), how)
    return Trained(progress, load_tensors(folder / "checkpoint")[0], student)


def assert_same(one: Trained, two: Trained) -> None:
    assert one.progress.steps == two.progress.steps == EPOCHS * STEPS
    assert one.losses() == pytest.approx(two.losses(), **CLOSE)
    assert torch.equal(one.checkpoint["noise_position"], two.checkpoint["noise_position"]), "other noise was drawn"
    names = [name for name in one.checkpoint if name.startswith("parameter/")]
    apart = torch.cat([(one.checkpoint[name] - two.checkpoint[name]).abs().flatten() for name in names])
    # The median, because some gradients are nothing but rounding, such as that of a bias in front of a batch norm, and
    # Adam makes whole steps of them. Gradients that are off by 1e-8 move it to 1e-4, one lost step to 6e-4 and more in
    # most of these networks (tried on a CPU).
    assert apart.median().item() < 3e-4


CASES = [
    *((name, perceptron) for name in ("vanilla", "kd", "st-vbd", "st-svd", "kd-dropout", "bc", "sgld")),
    *((name, perceptron) for name in ("noisy", "noisy-student")),
    ("bdk", student_and_sampler),
    # Convolutions, batch norm, dropout that belongs to the network; channels_last all.
    *(("kd", network(family)) for family in ("lenet", "vgg", "nin", "keras-resnet", "densenet")),
    ("st-vbd", network("lenet")),
]


@pytest.mark.parametrize(("name", "build"), CASES)
def test_captured_steps_are_the_steps_one_by_one(tmp_path: Path, name: str, build: Callable[[], nn.Module]):
    one_by_one = trained(tmp_path / "eager", backend(graph=False), name, build)
    in_chunks = trained(tmp_path / "captured", backend(), name, build)
    assert one_by_one.progress.execution == "eager"
    assert in_chunks.progress.execution == "captured"
    assert_same(one_by_one, in_chunks)


def test_noise_is_fresh_in_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A graph that repeated its numbers would train on one noise for ever."""
    seen: list[torch.Tensor] = []
    original = CudaGraphs._play

    def play(self: CudaGraphs, graph: torch.cuda.CUDAGraph) -> None:
        original(self, graph)
        seen.append(noise[0].clone())

    noise: list[torch.Tensor] = []
    draw = "kdx.training.noise.NoiseSource.draw"
    from kdx.training.noise import NoiseSource

    first = NoiseSource.draw

    def drawing(self: NoiseSource) -> dict[str, torch.Tensor]:
        noise[:] = list(self.buffers.values())[:1]
        return first(self)

    monkeypatch.setattr(draw, drawing)
    monkeypatch.setattr(CudaGraphs, "_play", play)
    trained(tmp_path, backend(), "st-vbd")
    values = torch.stack(seen[TRIAL_PLAYS:])  # what was tried is undone
    assert len(values) > 2
    assert len(values.flatten(1)[:, 0].unique()) == len(values)
    assert abs(values.mean().item()) < 0.05
    assert abs(values.std().item() - 1) < 0.05


@pytest.mark.parametrize("play", [1, 2, 3, 5])
def test_stopped_between_chunks_and_continued(tmp_path: Path, play: int, monkeypatch: pytest.MonkeyPatch):
    whole = trained(tmp_path / "whole", backend())
    original, plays = CudaGraphs._play, iter(range(1, 10**6))

    def stopping(self: CudaGraphs, graph: torch.cuda.CUDAGraph) -> None:
        original(self, graph)
        if next(plays) == TRIAL_PLAYS + play:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(CudaGraphs, "_play", stopping)
        with pytest.raises(Interrupted):
            trained(tmp_path / "stopped", backend())
    assert_same(trained(tmp_path / "stopped", backend()), whole)
    # What a graph began is finished without one, too.
    with monkeypatch.context() as patched:
        plays = iter(range(1, 10**6))
        patched.setattr(CudaGraphs, "_play", stopping)
        with pytest.raises(Interrupted):
            trained(tmp_path / "otherwise", backend())
    assert_same(trained(tmp_path / "otherwise", backend(graph=False)), whole)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize(("name", "build"), [("st-vbd", perceptron), ("kd", network("vgg")), ("sgld", perceptron)])
def test_no_epoch_waits_for_the_device(
    tmp_path: Path, graph: bool, name: str, build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
):
    """torch raises an error where it would wait; the first epoch is left out, in which the steps are captured."""
    original, watched = _Loop.run_epoch, []

    def run_epoch(self: _Loop) -> None:
        if self.epoch:
            torch.cuda.set_sync_debug_mode("error")
            watched.append(self.epoch)
        try:
            original(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(_Loop, "run_epoch", run_epoch)
    trained(tmp_path, backend(graph=graph), name, build)
    assert watched == list(range(1, EPOCHS))


def test_python_is_never_far_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, lengths = CudaGraphs._play, []

    def play(self: CudaGraphs, graph: torch.cuda.CUDAGraph) -> None:
        original(self, graph)
        lengths.append(len(self._under_way))

    monkeypatch.setattr(CudaGraphs, "_play", play)
    trained(tmp_path, backend())
    assert max(lengths) <= AHEAD


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(
    ("name", "build"), [("kd", perceptron), ("st-vbd", perceptron), ("kd", network("keras-resnet"))]
)
def test_precision_changes_no_conclusion(
    tmp_path: Path, graph: bool, precision: str, name: str, build: Callable[[], nn.Module]
):
    """Every epoch's loss within 5 %; batch norm over small batches of bfloat16 within 15 %."""
    exact = trained(tmp_path / "fp32", backend(graph=graph), name, build)
    rounded = trained(tmp_path / precision, backend(graph=graph, precision=precision), name, build)
    assert rounded.losses() == pytest.approx(exact.losses(), rel=0.05 if build is perceptron else 0.15)
    # For products as small as these cuBLAS may have nothing faster than float32 in TF32's place.
    assert precision == "tf32" or rounded.losses() != exact.losses()
    assert all(value.dtype == torch.float32 for value in rounded.student.parameters())


def test_fp32_is_not_tf32_in_convolutions_either():
    images, filters = normal(32, 256, 16, 16, seed=1).cuda(), normal(256, 256, 3, 3, seed=2).cuda()
    exact = torch.conv2d(images.double(), filters.double())
    errors = {}
    for precision in ("fp32", "tf32"):
        backend(precision=precision)
        errors[precision] = ((torch.conv2d(images, filters) - exact).norm() / exact.norm()).item()
    assert errors["fp32"] < 5e-5 < errors["tf32"]


def test_a_run_in_tf32_is_evaluated_in_whole_float32():
    images, filters = normal(32, 256, 16, 16, seed=1).cuda(), normal(256, 256, 3, 3, seed=2).cuda()
    convolution = nn.Conv2d(256, 256, 3, bias=False).cuda()
    convolution.weight = nn.Parameter(filters)
    backend(precision="tf32")
    answers = logits_of(convolution, Split(images, torch.zeros(32, dtype=torch.int64).cuda()))[:, 0]
    exact = torch.conv2d(images.double(), filters.double())
    assert ((answers - exact).norm() / exact.norm()).item() < 5e-5


@contextmanager
def without_graphs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Execution, "recorder", lambda self: None)
        yield


def fits(folder: Path, name: str, count: int, network: Callable[..., nn.Module] = perceptron) -> list[Fit]:
    each = []
    for seed in range(count):
        trainer = TrainerSettings(
            epochs=EPOCHS, batch_size=BATCH, lr=1e-3 * (1 + seed), hold=0.5, patience=None, checkpoint_seconds=1e9
        )
        own = {"kd-dropout": {"dropout": 0.1 + seed / 5}, "st-vbd": {"lambda_V": 0.5 + seed}}.get(name, {})
        how = method(name, **own)
        each.append(Fit(network(seed=seed), how, FitSpec("it", trainer, seed, RunFolder(folder / str(seed)))))
    return each


def inputs(how: Backend, shape: tuple[int, ...] = (1, 6, 6)) -> TrainingInputs:
    examples = examples_of(shape)
    data = Data("miniature", examples, examples, examples, CLASSES, "pixels").to(how.device)
    teacher = perceptron(hidden=9, seed=3).to(how.device)
    return TrainingInputs(data, teacher, normal(EXAMPLES, CLASSES, seed=4).to(how.device))


def assert_together_as_alone(
    folder: Path,
    name: str,
    way: FusionMode,
    together: Backend,
    alone: Backend,
    *,
    build: Callable[..., nn.Module] = perceptron,
    shape: tuple[int, ...] = (1, 6, 6),
    close: Mapping[str, float] = CLOSE,
) -> None:
    taught = inputs(together, shape)
    found = fit_fused(fits(folder / "together", name, 3, build), taught, together, way)
    for one, fitted in zip(fits(folder / "alone", name, 3, build), found, strict=True):
        _, progress = fit(one.network, one.method, taught, one.spec, alone)
        assert isinstance(fitted, FitResult)
        assert fitted.progress.execution == ("compiled and captured" if together.compile is True else "captured")
        losses = [[row["loss"] for row in each.history] for each in (progress, fitted.progress)]
        assert losses[1] == pytest.approx(losses[0], **close)


@pytest.mark.parametrize("way", ["stacked", "loop"])
@pytest.mark.parametrize("name", ["vanilla", "kd", "kd-dropout", "st-vbd"])
def test_together_is_alone(tmp_path: Path, way: FusionMode, name: str):
    """Orders, noise, rates and weights of their own."""
    assert_together_as_alone(tmp_path, name, way, backend(), backend())


@pytest.mark.parametrize("way", ["stacked", "loop", "auto"])
@pytest.mark.parametrize("family", ["keras-resnet", "kddp"])
def test_convolutions_and_batch_norm_together_are_alone(tmp_path: Path, way: FusionMode, family: str):
    """vmap takes cuDNN's batch norm only as `_stackable` has it.

    The algorithms for the convolutions of three models are others, and batch norm makes more of what they round.
    """
    build = partial(small, family)
    assert_together_as_alone(tmp_path, "kd", way, backend(), backend(), build=build, shape=IMAGE, close={"rel": 2e-2})


@pytest.mark.timeout(150)
@pytest.mark.parametrize("way", ["stacked", "loop"])
def test_compiled_and_captured_is_eager(tmp_path: Path, way: FusionMode):
    assert_together_as_alone(tmp_path, "st-vbd", way, backend(compile=True), backend(graph=False, compile=False))


def test_convolutions_lie_channels_last_in_memory_and_not_in_files(tmp_path: Path):
    result = trained(tmp_path, backend(), "kd", network("vgg"))
    filters = result.student.get_parameter("conv2.weight")
    assert filters.is_contiguous(memory_format=torch.channels_last)
    assert not filters.is_contiguous()
    stored = result.checkpoint["parameter/conv2.weight"]
    assert stored.is_contiguous()
    assert torch.equal(stored, filters.detach().cpu())


def test_the_order_of_the_examples_is_that_of_the_cpu(tmp_path: Path):
    examples = replace(split(100), mirror="random", shift=2)
    student_and_sampler = (examples, examples.to("cuda"))
    orders = [each.order(*(torch.Generator().manual_seed(seed) for seed in range(3))) for each in student_and_sampler]
    assert torch.equal(*(order.cpu() for order in orders))
    seen = [each.take(order)[0] for each, order in zip(student_and_sampler, orders, strict=True)]
    assert torch.equal(*(images.cpu() for images in seen))


def test_memory_is_given_back(tmp_path: Path):
    how, kept = backend(), []
    for index in range(4):
        trained(tmp_path / str(index), how, "kd", network("vgg"))
        torch.cuda.synchronize()
        kept.append(torch.cuda.memory_allocated())
    assert max(kept[1:]) <= kept[0] + 2**20


def test_a_loss_that_breaks_is_named_at_the_end_of_the_epoch(tmp_path: Path):
    from kdx.errors import Diverged

    with pytest.raises(Diverged, match=r"is no longer finite in epoch 1, step \d+; try a lower trainer\.lr$"):
        trained(tmp_path, backend(), "vanilla", lr=1e38)
