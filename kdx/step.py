"""One training step as a function of its arguments alone: forward, backward, and Adam or Langevin dynamics.

Eager, compiled and captured execution wrap this one function, for one model or for several whose tensors are stacked;
it draws no random numbers, reads no clock and holds no state, so resuming a run is storing its arguments.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdx.objective import Langevin, Objective, Step
from kdx.state import State, unstacked

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants (Kingma and Ba 2015), also those of the papers' frameworks, but for Keras' later epsilon of 1e-7."""


@dataclass(frozen=True)
class Batch:
    """Images (batch, C, H, W), labels (batch,) and, where the method needs them, teacher logits (batch, classes).

    Of several models that see different batches, each tensor has a leading dimension for the model.
    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None


@dataclass(frozen=True)
class Stacking:
    """Which parts of the batch differ between models that are trained in one step: they have a model dimension."""

    examples: bool
    teacher_logits: bool

    def batch_of(self, batch: Batch, model: int) -> Batch:
        """One model's part of the batch of all."""
        images, labels, logits = batch.images, batch.labels, batch.teacher_logits
        if self.examples:
            images, labels = images[model], labels[model]
        return Batch(images, labels, logits[model] if self.teacher_logits and logits is not None else logits)


Noise = dict[str, Tensor]
StepOnBatch = Callable[[State, Batch, Noise, Tensor], None]
"""step(state, batch, noise by buffer name, numbers as one row) -> None; the state is updated in place.

For several models noise has a leading dimension for the model, and so do the numbers: (models, numbers).
"""
RunStep = Callable[[State, Tensor, Noise, Tensor], None]
"""The same with the numbers of the batch's examples (batch,) in its place."""


def number_names(objective: Objective) -> list[str]:
    """The order of the numbers in the row that a step is given: the objective's, then the optimiser's."""
    return [*objective.numbers, "lr", "steps", "bias1", "bias2"]


def make_step(
    student: nn.Module, objective: Objective, *, eager: bool, autocast: str | None, stacking: Stacking | None = None
) -> StepOnBatch:
    """The training step of `student` under `objective`.

    `eager` takes torch's autograd and its fused Adam kernel, which are fastest one operation at a time; otherwise the
    gradient is a function transform and Adam is written out, which a compiler sees through. `autocast` names the
    device type whose matrix products run in bfloat16; None means float32. With `stacking` the step trains several
    models of this structure under objectives that differ in nothing but their numbers.
    """
    names = number_names(objective)
    loss = _loss(student if stacking is None else _stackable(student), objective, autocast)
    gradients_of, adam = (_autograd(loss), _fused_adam) if eager else (_transformed(loss), _adam)
    if stacking is not None:
        gradients_of = _of_several(_transformed(loss), stacking)
        adam = _fused_adams if eager else _adam

    def step(state: State, batch: Batch, noise: Noise, row: Tensor) -> None:
        numbers = dict(zip(names, row.unbind(-1), strict=True))
        gradients, (total, (terms, buffers)) = gradients_of(
            state.parameters, state.buffers, batch.images, batch.labels, batch.teacher_logits, noise, numbers
        )
        with torch.no_grad():
            broken = _count(state, torch.cat([total.unsqueeze(-1), terms], dim=-1))
            for name, value in buffers.items():
                state.buffers[name].copy_(value)
            learnt = {name: gradient for name, gradient in gradients.items() if name not in objective.langevin}
            adam(state, learnt, numbers, objective.rates, broken)
            _langevin(state, gradients, numbers, noise, objective.langevin, broken)

    return step


def _count(state: State, values: Tensor) -> Tensor:
    """Add a step's total and terms to the sums; 1 where the total's is not finite, else 0: (), or (models,)."""
    # Sums remember: once one of them is not finite it never is again. Nothing here waits for the device.
    rest = state.sums.add_(values) - state.sums
    broken = rest.ne(rest).float()
    state.broken.add_(broken)
    return broken[..., 0]


Tensors = dict[str, Tensor]
Aside = tuple[Tensor, Tensors]
"""What a pass gives beside the total loss: every term, and the buffers after it."""
Pass = tuple[Tensor, Aside]
Loss = Callable[[Tensors, Tensors, Tensor, Tensor, Tensor | None, Noise, Tensors], Pass]
"""loss(parameters, buffers, images, labels, teacher logits, noise, numbers by name)."""
GradientsOf = Callable[[Tensors, Tensors, Tensor, Tensor, Tensor | None, Noise, Tensors], tuple[Tensors, Pass]]
"""The gradients by the parameters, and what the loss gives."""


def _loss(student: nn.Module, objective: Objective, autocast: str | None) -> Loss:
    network = Watching(student, objective.watched) if objective.watched else student

    def loss(
        parameters: Tensors,
        buffers: Tensors,
        images: Tensor,
        labels: Tensor,
        teacher_logits: Tensor | None,
        noise: Noise,
        numbers: Tensors,
    ) -> Pass:
        term_noise = {name: noise[name] for name in objective.draws}
        layer_noise = {name: value for name, value in noise.items() if name not in objective.draws}
        # Batch norm moves its statistics in place, which a function transform allows on tensors of its own only.
        buffers = {name: value.clone() for name, value in buffers.items()}
        with torch.autocast(autocast or "cpu", torch.bfloat16, enabled=autocast is not None):
            output = functional_call(network, {**parameters, **buffers, **layer_noise}, (images,))
        logits, seen = output if isinstance(output, tuple) else (output, {})
        total, terms = objective.loss(
            Step(logits.float(), labels, teacher_logits, parameters, numbers, seen, term_noise)
        )
        return total, (terms, buffers)

    return loss


def _stackable(student: nn.Module) -> nn.Module:
    """The student with the same tensors, whose batch norms vmap can take on a GPU."""
    tensors = [*student.parameters(), *student.buffers()]
    copy = deepcopy(student, {id(tensor): tensor for tensor in tensors})
    for layer in copy.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # cuDNN's asks how its input lies in memory, and vmap answers for the plain layout only.
            layer.register_forward_pre_hook(_laid_out_plainly)
    return copy


def _laid_out_plainly(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)


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


def _transformed(loss: Loss) -> GradientsOf:
    gradients_and_pass = torch.func.grad_and_value(loss, has_aux=True)

    def gradients_of(*arguments: Any) -> tuple[Tensors, Pass]:
        return gradients_and_pass(*arguments)

    return gradients_of


def _autograd(loss: Loss) -> GradientsOf:
    def gradients_of(parameters: Tensors, *others: Any) -> tuple[Tensors, Pass]:
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        total, aside = loss(leaves, *others)
        gradients = torch.autograd.grad(total, list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True)), (total.detach(), aside)

    return gradients_of


def _of_several(gradients_of: GradientsOf, stacking: Stacking) -> GradientsOf:
    # torch turns the linear maps of all models into one batched product, and their convolutions into a grouped one.
    examples, logits = (0 if differs else None for differs in (stacking.examples, stacking.teacher_logits))
    return torch.func.vmap(gradients_of, in_dims=(0, 0, examples, examples, logits, 0, 0))


def _adam(
    state: State,
    gradients: Mapping[str, Tensor],
    numbers: Mapping[str, Tensor],
    rates: Mapping[str, str],
    broken: Tensor,
) -> None:
    for name, gradient in gradients.items():
        first, second = state.first[name], state.second[name]
        gradient = gradient.masked_fill(_beside(broken.bool(), gradient), 0)
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        lr = _rate(name, numbers, rates)
        scale = (second / _beside(numbers["bias2"], second)).sqrt_().add_(EPSILON)
        state.parameters[name].sub_(_beside(lr / numbers["bias1"], first) * first / scale)


def _fused_adam(
    state: State,
    gradients: Mapping[str, Tensor],
    numbers: Mapping[str, Tensor],
    rates: Mapping[str, str],
    broken: Tensor,
) -> None:
    groups: dict[str, list[str]] = {}
    for name in gradients:
        groups.setdefault(rates.get(name, ""), []).append(name)
    for members in groups.values():
        torch._fused_adam_(  # type: ignore[attr-defined]
            [state.parameters[name] for name in members],
            [_laid_out_as(state.parameters[name], gradients[name]) for name in members],
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
            found_inf=broken,
        )


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the same order in memory as the parameter, which the kernel takes for granted."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def _fused_adams(
    state: State,
    gradients: Mapping[str, Tensor],
    numbers: Mapping[str, Tensor],
    rates: Mapping[str, str],
    broken: Tensor,
) -> None:
    # The kernel takes one rate for all that it updates; the gradients of all models are put in order at once.
    models = len(state.sums)
    own = unstacked({name: gradient.contiguous() for name, gradient in gradients.items()}, models)
    for model, (own_gradients, own_numbers) in enumerate(zip(own, unstacked(numbers, models), strict=True)):
        _fused_adam(state.models[model], own_gradients, own_numbers, rates, broken[model])


def _langevin(
    state: State,
    gradients: Mapping[str, Tensor],
    numbers: Mapping[str, Tensor],
    noise: Mapping[str, Tensor],
    sampled: Mapping[str, Langevin],
    broken: Tensor,
) -> None:
    """theta - eta/2 * examples * gradient + sqrt(eta) * N(0, 1) (Welling and Teh 2011, eq. 4)."""
    for name, how in sampled.items():
        eta = _beside(numbers[how.eta], gradients[name])
        move = eta / 2 * how.examples * gradients[name] - eta.sqrt() * noise[how.noise]
        state.parameters[name].sub_(move.masked_fill(_beside(broken.bool(), move), 0))


def _rate(name: str, numbers: Mapping[str, Tensor], rates: Mapping[str, str]) -> Tensor:
    lr = numbers["lr"]
    return lr * numbers[rates[name]] if name in rates else lr


def _beside(number: Tensor, tensor: Tensor) -> Tensor:
    """A number, or one of each model (models,), in a shape that multiplies the tensor."""
    return number.reshape(-1, *(1,) * (tensor.dim() - 1)) if number.dim() else number
