"""One training step as a pure function of its arguments: forward, backward, and the optimizer's update.

Eager, compiled and captured execution wrap this one function, for one model or for several whose tensors are stacked;
it draws no random numbers, reads no clock and holds no state, so a run can be resumed from its arguments.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kdx.training.objective import LossInputs, Objective
from kdx.training.optimizer import ADAM, Optimizer, average, make_update, sample
from kdx.training.state import State


class Batch(NamedTuple):
    """Images (batch, C, H, W), labels (batch,) and, if the method needs them, teacher logits (batch, classes).

    If several models see different batches, each tensor has a leading model dimension.
    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None


@dataclass(frozen=True)
class Stacking:
    """Which parts of the batch differ between models that are trained in one step, and so have a model dimension."""

    examples: bool
    teacher_logits: bool

    def batch_of(self, batch: Batch, model: int) -> Batch:
        """One model's part of the stacked batch."""
        images, labels, logits = batch
        if self.examples:
            images, labels = images[model], labels[model]
        return Batch(images, labels, logits[model] if self.teacher_logits and logits is not None else logits)


Tensors = dict[str, Tensor]
Noise = Tensors
Step = Callable[[State, Batch, Noise, Tensor], None]
"""step(state, batch, noise by buffer name, hyper-parameters as one row) -> None; updates the state in place.

For several models noise has a leading dimension for the model, and so do the numbers: (models, numbers).
"""
RunStep = Callable[[State, Tensor, Noise, Tensor], None]
"""The same with the indices of the batch's examples (batch,) instead of the batch."""


def hyperparameter_names(objective: Objective, optimizer: Optimizer = ADAM) -> list[str]:
    """The names of the hyper-parameters in a step's row, in order: the objective's, then the optimizer's."""
    return [*objective.hyperparameters, *optimizer.numbers]


def make_step(
    student: nn.Module,
    objective: Objective,
    *,
    eager: bool,
    autocast: str | None,
    stacking: Stacking | None = None,
    optimizer: Optimizer = ADAM,
) -> Step:
    """The training step of `student` under `objective`.

    `eager` uses torch's autograd and fused Adam kernel, which are fastest if operations are launched singly; otherwise
    the gradient is a function transform and Adam is written out, for the compiler. `autocast` names the device type
    whose matrix products run in bfloat16; None means float32. With `stacking` the step trains several models of this
    structure, whose objectives differ only in their hyper-parameters.
    """
    names = hyperparameter_names(objective, optimizer)
    loss = _loss(student if stacking is None else _stackable(student), objective, autocast)
    gradients_of = _autograd(loss) if eager else _transformed(loss)
    if stacking is not None:
        gradients_of = _of_several(_transformed(loss), stacking)
    update = make_update(optimizer, objective.lr_multipliers, eager=eager, several=stacking is not None)

    def step(state: State, batch: Batch, noise: Noise, row: Tensor) -> None:
        numbers = dict(zip(names, row.unbind(-1), strict=True))
        gradients, (total, (terms, buffers)) = gradients_of(state.parameters, state.buffers, batch, noise, numbers)
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
    """Add a step's total loss and terms to the sums; 1 where the total's sum is not finite, else 0: () or (models,)."""
    # A sum that is not finite once never is again, so checking it later suffices; nothing here waits for the device.
    rest = state.sums.add_(values) - state.sums
    broken = rest.ne(rest).float()
    state.broken.add_(broken)
    return broken[..., 0]


Pass = tuple[Tensor, tuple[Tensor, Tensors]]
"""The outputs of a forward pass: the total loss; every term, and the updated buffers."""
Loss = Callable[[Tensors, Tensors, Batch, Noise, Tensors], Pass]
"""loss(parameters, buffers, batch, noise, numbers by name)."""
GradientsOf = Callable[[Tensors, Tensors, Batch, Noise, Tensors], tuple[Tensors, Pass]]
"""The gradients of the parameters, and the outputs of the loss function."""


def _loss(student: nn.Module, objective: Objective, autocast: str | None) -> Loss:
    network = FeatureExtractor(student, objective.feature_layers) if objective.feature_layers else student

    def loss(parameters: Tensors, buffers: Tensors, batch: Batch, noise: Noise, numbers: Tensors) -> Pass:
        images, labels, teacher_logits = batch
        term_noise = {name: noise[name] for name in objective.noise_specs}
        layer_noise = {name: value for name, value in noise.items() if name not in objective.noise_specs}
        # Batch norm updates its statistics in place, which a function transform allows only on its own tensors.
        buffers = {name: value.clone() for name, value in buffers.items()}
        with torch.autocast(autocast or "cpu", torch.bfloat16, enabled=autocast is not None):
            output = functional_call(network, {**parameters, **buffers, **layer_noise}, (images,))
        logits, seen = output if isinstance(output, tuple) else (output, {})
        total, terms = objective.loss(
            LossInputs(logits.float(), labels, teacher_logits, parameters, numbers, seen, term_noise)
        )
        return total, (terms, buffers)

    return loss


def _stackable(student: nn.Module) -> nn.Module:
    """The student with the same tensors, its batch norms replaced by those that vmap supports on a GPU."""
    tensors = [*student.parameters(), *student.buffers()]
    copy = deepcopy(student, {id(tensor): tensor for tensor in tensors})
    for layer in copy.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # cuDNN's batch norm queries its input's memory format, which vmap supports for contiguous tensors only.
            layer.register_forward_pre_hook(_laid_out_plainly)
    return copy


def _laid_out_plainly(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)


class FeatureExtractor(nn.Sequential):
    """The student's layers under the same names; returns the outputs of the feature layers besides the logits."""

    def __init__(self, student: nn.Module, watched: Sequence[str]) -> None:
        layers = dict(student.named_children())
        assert type(student) is nn.Sequential, "only the layers of a plain sequence can be watched"
        missing = set(watched) - layers.keys()
        assert not missing, f"layers that the student does not have are watched: {missing}"
        super().__init__(OrderedDict(layers))
        self.watched = tuple(watched)

    def forward(self, input: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and the outputs of the feature layers, in float32."""
        output, seen = input, {}
        for name, layer in self.named_children():
            output = layer(output)
            if name in self.watched:
                seen[name] = output.float()
        return output, seen


def _transformed(loss: Loss) -> GradientsOf:
    return torch.func.grad_and_value(loss, has_aux=True)


def _autograd(loss: Loss) -> GradientsOf:
    def gradients_of(
        parameters: Tensors, buffers: Tensors, batch: Batch, noise: Noise, numbers: Tensors
    ) -> tuple[Tensors, Pass]:
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        total, aside = loss(leaves, buffers, batch, noise, numbers)
        gradients = torch.autograd.grad(total, list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True)), (total.detach(), aside)

    return gradients_of


def _of_several(gradients_of: GradientsOf, stacking: Stacking) -> GradientsOf:
    # vmap turns the linear layers of all models into one batched product, and convolutions into a grouped one.
    examples, logits = (0 if differs else None for differs in (stacking.examples, stacking.teacher_logits))
    return torch.func.vmap(gradients_of, in_dims=(0, 0, Batch._make((examples, examples, logits)), 0, 0))
