"""One training step as a function of its arguments alone: forward, backward, and Adam or Langevin dynamics.

Eager, compiled and captured execution wrap this one function; it draws no random numbers, reads no clock and holds no
state, so resuming a run is storing its arguments.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdx.objective import Langevin, Objective, Step

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants (Kingma and Ba 2015), also those of every framework the papers used."""


@dataclass(frozen=True)
class State:
    """What a step changes, in place: parameters, Adam's two moments of those it updates, and the sums of the terms.

    `sums` is (1 + terms,): the total and every term, added up since it was last set to zero.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    sums: Tensor

    @staticmethod
    def of(student: nn.Module, terms: int, sampled: Collection[str] = ()) -> "State":
        """The state that shares its memory with the student's parameters and buffers; moments start at zero.

        The parameters named in `sampled` have none.
        """
        parameters = {name: parameter.detach() for name, parameter in student.named_parameters()}
        learnt = {name: value for name, value in parameters.items() if name not in sampled}
        return State(
            parameters=parameters,
            buffers=dict(student.named_buffers()),
            first={name: torch.zeros_like(value) for name, value in learnt.items()},
            second={name: torch.zeros_like(value) for name, value in learnt.items()},
            sums=torch.zeros(1 + terms, device=next(iter(parameters.values())).device),
        )

    def network(self) -> dict[str, Tensor]:
        """The tensors of the network itself, under a name of its own each."""
        groups = {"parameter": self.parameters, "buffer": self.buffers}
        return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state under a name of its own, for checkpoints."""
        moments = {"first": self.first, "second": self.second}
        named = {f"{group}/{name}": value for group, values in moments.items() for name, value in values.items()}
        return self.network() | named | {"sums": self.sums}


@dataclass(frozen=True)
class Batch:
    """Images (batch, C, H, W), labels (batch,) and, where the method needs them, teacher logits (batch, classes)."""

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None


Noise = dict[str, Tensor]
StepOnBatch = Callable[[State, Batch, Noise, Tensor], None]
"""step(state, batch, noise by buffer name, numbers as one row) -> None; the state is updated in place."""
RunStep = Callable[[State, Tensor, Noise, Tensor], None]
"""The same with the numbers of the batch's examples (batch,) in its place."""


def number_names(objective: Objective) -> list[str]:
    """The order of the numbers in the row that a step is given: the objective's, then the optimiser's."""
    return [*objective.numbers, "lr", "steps", "bias1", "bias2"]


def make_step(student: nn.Module, objective: Objective, *, eager: bool, autocast: str | None) -> StepOnBatch:
    """The training step of `student` under `objective`.

    `eager` takes torch's autograd and its fused Adam kernel, which are fastest one operation at a time; otherwise the
    gradient is a function transform and Adam is written out, which a compiler sees through. `autocast` names the
    device type whose matrix products run in bfloat16; None means float32.
    """
    names = number_names(objective)
    network = Watching(student, objective.watched) if objective.watched else student
    gradients_of, adam = (_autograd, _fused_adam) if eager else (_transformed, _adam)

    def step(state: State, batch: Batch, noise: Noise, row: Tensor) -> None:
        numbers = dict(zip(names, row.unbind(), strict=True))
        term_noise = {name: noise[name] for name in objective.draws}
        layer_noise = {name: value for name, value in noise.items() if name not in objective.draws}

        # Its result has a name because torch's compiler, which reads this line too, knows no nested subscripts.
        def loss(parameters: dict[str, Tensor]) -> Pass:
            # Batch norm moves its statistics in place, which a function transform allows on tensors of its own only.
            buffers = {name: value.clone() for name, value in state.buffers.items()}
            with torch.autocast(autocast or "cpu", torch.bfloat16, enabled=autocast is not None):
                output = functional_call(network, {**parameters, **buffers, **layer_noise}, (batch.images,))
            logits, seen = output if isinstance(output, tuple) else (output, {})
            total, terms = objective.loss(
                Step(logits.float(), batch.labels, batch.teacher_logits, parameters, numbers, seen, term_noise)
            )
            return total, (terms, buffers)

        gradients, total, (terms, buffers) = gradients_of(loss, state.parameters)
        with torch.no_grad():
            state.sums.add_(torch.cat([total.reshape(1), terms]))
            for name, value in buffers.items():
                state.buffers[name].copy_(value)
            learnt = {name: gradient for name, gradient in gradients.items() if name not in objective.langevin}
            adam(state, learnt, numbers, objective.rates)
            _langevin(state, gradients, numbers, term_noise, objective.langevin)

    return step


class Watching(nn.Sequential):
    """The layers of a student, under the same names, that give beside the logits the outputs of the watched ones."""

    def __init__(self, student: nn.Module, watched: Sequence[str]) -> None:
        layers = dict(student.named_children())
        assert type(student) is nn.Sequential, "only the layers of a plain sequence can be watched"
        missing = set(watched) - layers.keys()
        assert not missing, f"layers that the student does not have are watched: {missing}"
        super().__init__(OrderedDict(layers))
        self.watched = tuple(watched)

    def forward(self, input: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the outputs of the watched layers in float32."""
        output, seen = input, {}
        for name, layer in self.named_children():
            output = layer(output)
            if name in self.watched:
                seen[name] = output.float()
        return output, seen


Aside = tuple[Tensor, dict[str, Tensor]]
"""What a pass gives beside the total loss: every term, and the buffers after it."""
Pass = tuple[Tensor, Aside]
Loss = Callable[[dict[str, Tensor]], Pass]


def _transformed(loss: Loss, parameters: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Aside]:
    gradients, (total, aside) = torch.func.grad_and_value(loss, has_aux=True)(parameters)
    return gradients, total, aside


def _autograd(loss: Loss, parameters: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Aside]:
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    total, aside = loss(leaves)
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True)), total.detach(), aside


def _adam(
    state: State, gradients: Mapping[str, Tensor], numbers: Mapping[str, Tensor], rates: Mapping[str, str]
) -> None:
    for name, gradient in gradients.items():
        first, second = state.first[name], state.second[name]
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        lr = _rate(name, numbers, rates)
        scale = (second / numbers["bias2"]).sqrt_().add_(EPSILON)
        state.parameters[name].sub_(lr / numbers["bias1"] * first / scale)


def _fused_adam(
    state: State, gradients: Mapping[str, Tensor], numbers: Mapping[str, Tensor], rates: Mapping[str, str]
) -> None:
    groups: dict[str, list[str]] = {}
    for name in gradients:
        groups.setdefault(rates.get(name, ""), []).append(name)
    for members in groups.values():
        torch._fused_adam_(  # type: ignore[attr-defined]
            [state.parameters[name] for name in members],
            [gradients[name] for name in members],
            [state.first[name] for name in members],
            [state.second[name] for name in members],
            [],
            [numbers["steps"]] * len(members),
            lr=_rate(members[0], numbers, rates),
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )


def _langevin(
    state: State,
    gradients: Mapping[str, Tensor],
    numbers: Mapping[str, Tensor],
    noise: Mapping[str, Tensor],
    sampled: Mapping[str, Langevin],
) -> None:
    """theta - eta/2 * examples * gradient + sqrt(eta) * N(0, 1) (Welling and Teh 2011, eq. 4)."""
    for name, how in sampled.items():
        eta = numbers[how.eta]
        drift = eta / 2 * how.examples * gradients[name]
        state.parameters[name].sub_(drift - eta.sqrt() * noise[how.noise])


def _rate(name: str, numbers: Mapping[str, Tensor], rates: Mapping[str, str]) -> Tensor:
    lr = numbers["lr"]
    return lr * numbers[rates[name]] if name in rates else lr
