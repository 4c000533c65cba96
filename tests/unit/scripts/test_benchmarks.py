"""The usual way that kdx is measured against must train the same thing, and the benchmark must say what it did."""

from collections.abc import Iterator

import pytest
import torch
from benchmarks import table, usual
from benchmarks.work import JOBS, Order, Work
from torch import Tensor, nn

from kdx.methods.method import build_method
from kdx.models import build_model
from kdx.models.layers import NoisyDropout
from kdx.training.noise import NoiseSource
from kdx.training.objective import LossInputs, Objective
from kdx.training.optimizer import BETA1, BETA2
from kdx.training.state import State
from kdx.training.step import Batch, hyperparameter_names, make_step

BATCH, EXAMPLES, SHAPE, CLASSES = 16, 1000, (1, 28, 28), 10


class BothWays:
    """The same job, from the same initial weights, as kdx and the usual way train it, after the warm-up of the KL."""

    def __init__(self, job: str) -> None:
        order = Order(job, "eager", "digits", threads=1, batch_size=BATCH, steps=1, loader_workers=0, outputs="unused")
        work = Work.of(job, order.config())
        self.epoch = float(work.method.get("warmup_end", 0.0))
        self.teacher = build_model(work.teacher, SHAPE, CLASSES, seed=1).eval()
        with torch.no_grad():
            # Confident, as a trained one: a hint near zero would be the difference of nearly equal numbers.
            list(self.teacher.parameters())[-2].mul_(50)
        method = build_method(work.method)
        self.student = method.prepare(build_model(work.student, SHAPE, CLASSES, seed=2))
        self.objective: Objective = method.objective(self.student, self.teacher, EXAMPLES)
        network = usual.network(work.widths(784, CLASSES), work.method)
        copy_parameters(self.student, network)
        self.usual = usual.UsualTraining(network, self.teacher, work.method, work.trainer.lr, EXAMPLES)
        self.lr = work.trainer.lr
        self.images = torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(3))
        self.labels = torch.arange(BATCH) % CLASSES
        self.generator = torch.Generator().manual_seed(4)
        self.noise = NoiseSource(self.student, self.images, self.generator)
        with torch.no_grad():
            self.teacher_logits: Tensor = self.teacher(self.images)

    def same_noise(self) -> dict[str, Tensor]:
        """kdx's noise of a step, and torch's global generator put where it draws the same in the layers."""
        torch.random.set_rng_state(self.generator.get_state())
        noise = self.noise.draw()
        dropouts = {name: layer for name, layer in self.student.named_modules() if isinstance(layer, NoisyDropout)}
        if dropouts:
            self.generator.set_state(torch.random.get_rng_state())
        for name, layer in dropouts.items():
            # torch draws no bits but Bernoulli numbers.
            kept = torch.empty(noise[f"{name}.noise"].shape).bernoulli_(1 - layer.rate, generator=self.generator)
            noise[f"{name}.noise"].copy_(kept == 1)
        return noise

    def numbers(self, steps: int) -> dict[str, float]:
        optimiser = {"lr": self.lr, "steps": float(steps), "bias1": 1 - BETA1**steps, "bias2": 1 - BETA2**steps}
        return {name: schedule(self.epoch) for name, schedule in self.objective.hyperparameters.items()} | optimiser


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for one, other in zip(target.parameters(), source.parameters(), strict=True):
            one.copy_(other)


@pytest.fixture(params=JOBS)
def both(request: pytest.FixtureRequest) -> Iterator[BothWays]:
    with torch.random.fork_rng():
        yield BothWays(request.param)


def test_the_usual_way_has_the_same_loss_terms(both: BothWays) -> None:
    noise = both.same_noise()
    logits = torch.func.functional_call(both.student, noise, (both.images,))
    numbers = {name: torch.tensor(value) for name, value in both.numbers(1).items()}
    parameters = dict(both.student.named_parameters())
    total, terms = both.objective.loss(LossInputs(logits, both.labels, both.teacher_logits, parameters, numbers))

    usual_terms = both.usual.terms(both.images, both.labels)
    weights = both.usual.weights(both.epoch)

    assert list(usual_terms) == list(both.objective.terms)
    torch.testing.assert_close(torch.stack(list(usual_terms.values())), terms, rtol=1e-5, atol=1e-6)
    usual_total = sum(weights[name] * value for name, value in usual_terms.items())
    torch.testing.assert_close(usual_total, total, rtol=1e-5, atol=1e-6)


def test_the_usual_way_takes_the_same_steps(both: BothWays) -> None:
    state = State.of(both.student, len(both.objective.terms))
    step = make_step(both.student, both.objective, eager=True, autocast=None)
    batch = Batch(both.images, both.labels, both.teacher_logits)
    for count in (1, 2, 3):
        noise, numbers = both.same_noise(), both.numbers(count)
        step(state, batch, noise, torch.tensor([numbers[name] for name in hyperparameter_names(both.objective)]))
        both.usual.step(both.images, both.labels, both.epoch)
    trained = list(state.parameters.values())
    for one, other in zip(both.usual.student.parameters(), trained, strict=True):
        # Adam's first steps have the gradient's sign alone, so one rounding may turn a weight's step around.
        far = ((one - other).abs() > 1e-5).float().mean()
        assert far < 1e-3


@pytest.mark.parametrize("norm", [usual.block_norm, usual.reduced_block_norm])
def test_blocks_are_grouped_by_output_unit(norm: usual.BlockNorm) -> None:
    student, teacher = nn.Linear(2, 3), nn.Linear(4, 2)
    with torch.no_grad():
        student.weight.copy_(torch.tensor([[1.0, -5.0], [2.0, 0.0], [-3.0, 1.0]]))
        teacher.weight.copy_(torch.tensor([[0.0, 0.0, 0.0, 7.0], [1.0, 1.0, -1.5, 0.0]]))

    value = norm(student, teacher)
    value.backward()

    assert value.item() == 7.0 + 2.0 + 3.0
    assert student.weight.grad is not None
    assert student.weight.grad.tolist() == [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]


def test_ratios_are_taken_within_a_round() -> None:
    variants = {"usual": {"seconds": [8.0, 12.0]}, "eager": {"seconds": [2.0, 4.0]}}

    assert table.speedups(variants, "eager") == [4.0, 3.0]
    assert table.speedups(variants, "usual") is None
    assert table.speedups({"eager": {"seconds": [1.0]}}, "eager") is None


def test_bound_is_the_products_at_the_peak_rate() -> None:
    measured = {"gflop_per_step": 2.0, "steps_per_epoch": 100, "peak_gflops": 50.0, "seconds": [8.0, 10.0, 9.0]}

    assert table.seconds_at_peak(measured) == 4.0
    assert table.gflops(measured) == 200 / 9


def test_compilation_that_saves_nothing_is_never_repaid() -> None:
    compiled = {"seconds": [1.0], "compile_seconds": {"cold": 20.0, "cached": 4.0}}

    assert table.repaid_after(compiled, {"seconds": [3.0]}, "cold") == 10.0
    assert table.repaid_after(compiled, {"seconds": [1.0]}, "cold") is None
