"""One training step as a function of its arguments alone: forward, backward, and the optimizer's arithmetic.

Eager, compiled and captured execution wrap this one function, for one model or for several whose tensors are stacked;
it draws no random numbers, reads no clock and holds no state, so resuming a run is storing its arguments.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdx.objective import Objective, Step
from kdx.optimizer import ADAM, Optimizer, average, make_update, sample
from kdx.state import State


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


def number_names(objective: Objective, optimizer: Optimizer = ADAM) -> list[str]:
    """The order of the numbers in the row that a step is given: the objective's, then the optimizer's."""
    return [*objective.numbers, *optimizer.numbers]


def make_step(
    student: nn.Module,
    objective: Objective,
    *,
    eager: bool,
    autocast: str | None,
    stacking: Stacking | None = None,
    optimizer: Optimizer = ADAM,
) -> StepOnBatch:
    """The training step of `student` under `objective`.

    `eager` takes torch's autograd and its fused Adam kernel, which are fastest one operation at a time; otherwise the
    gradient is a function transform and Adam is written out, which a compiler sees through. `autocast` names the
    device type whose matrix products run in bfloat16; None means float32. With `stacking` the step trains several
    models of this structure under objectives that differ in nothing but their numbers.
    """
    names = number_names(objective, optimizer)
    loss = _loss(student if stacking is None else _stackable(student), objective, autocast)
    gradients_of = _autograd(loss) if eager else _transformed(loss)
    if stacking is not None:
        gradients_of = _of_several(_transformed(loss), stacking)
    update = make_update(optimizer, objective.rates, eager=eager, several=stacking is not None)

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
            update(state, learnt, numbers, broken)
            sample(state, gradients, numbers, noise, objective.langevin, broken)
            if optimizer.averages:
                average(state, numbers, broken)

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
