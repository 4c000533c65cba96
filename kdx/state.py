"""What a training step changes, of one model or of several whose tensors are stacked."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class State:
    """What a step changes, in place: parameters, Adam's two moments of those it updates, and the sums of the terms.

    `sums` is (1 + terms,): the total and every term, added up since it was last set to zero. `broken` (1 + terms,)
    counts the steps after which such a sum was not finite; from the first of them on the parameters stay as they are.
    The state of several models has in every tensor a leading dimension for the model.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    sums: Tensor
    broken: Tensor

    @staticmethod
    def of(student: nn.Module, terms: int, sampled: Collection[str] = ()) -> "State":
        """The state that shares its memory with the student's parameters and buffers; moments start at zero.

        The parameters named in `sampled` have none.
        """
        parameters = {name: parameter.detach() for name, parameter in student.named_parameters()}
        learnt = {name: value for name, value in parameters.items() if name not in sampled}
        sums = torch.zeros(1 + terms, device=next(iter(parameters.values())).device)
        return State(
            parameters=parameters,
            buffers=dict(student.named_buffers()),
            first={name: torch.zeros_like(value) for name, value in learnt.items()},
            second={name: torch.zeros_like(value) for name, value in learnt.items()},
            sums=sums,
            broken=torch.zeros_like(sums),
        )

    @staticmethod
    def stack(states: Sequence["State"]) -> "State":
        """The state of several models, in memory of its own."""
        return State(
            parameters=stacked([state.parameters for state in states]),
            buffers=stacked([state.buffers for state in states]),
            first=stacked([state.first for state in states]),
            second=stacked([state.second for state in states]),
            sums=torch.stack([state.sums for state in states]),
            broken=torch.stack([state.broken for state in states]),
        )

    @cached_property
    def models(self) -> list["State"]:
        """The states of the models that are stacked in this one; they share its memory."""
        groups = (
            unstacked(group, len(self.sums)) for group in (self.parameters, self.buffers, self.first, self.second)
        )
        own = zip(*groups, self.sums.unbind(), self.broken.unbind(), strict=True)
        return [State(*tensors) for tensors in own]

    def broken_parts(self, *, buffers: bool) -> list[str]:
        """What is not finite: gradients, as the moments saw them, else parameters, else buffers where these count."""
        groups = {
            "the gradient of ": self.first,
            "the square of the gradient of ": self.second,
            "": self.parameters | (self.buffers if buffers else {}),
        }
        names = [(prefix, name) for prefix, group in groups.items() for name in group]
        # Asked of the device for all of them before one answer is read.
        fine = torch.stack([value.isfinite().all() for group in groups.values() for value in group.values()])
        broken = [each for each, finite in zip(names, fine.tolist(), strict=True) if not finite]
        return [prefix + name for prefix, name in broken if prefix == broken[0][0]]

    def network(self) -> dict[str, Tensor]:
        """The tensors of the network itself, under a name of its own each."""
        groups = {"parameter": self.parameters, "buffer": self.buffers}
        return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state under a name of its own, for checkpoints, in which nothing is broken."""
        moments = {"first": self.first, "second": self.second}
        named = {f"{group}/{name}": value for group, values in moments.items() for name, value in values.items()}
        return self.network() | named | {"sums": self.sums}


def stacked(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several models, each with a leading dimension for the model; the memory layout of each stays."""
    return {name: _stack([tensors[name] for tensors in models]) for name in models[0]}


def unstacked(tensors: Mapping[str, Tensor], models: int) -> list[dict[str, Tensor]]:
    """The tensors of each of so many models, in the same memory."""
    return [{name: value[index] for name, value in tensors.items()} for index in range(models)]


def _stack(values: Sequence[Tensor]) -> Tensor:
    # torch.stack would lay out filters anew, and convolutions round otherwise then.
    first = values[0]
    result = first.new_empty_strided((len(values), *first.shape), (first.numel(), *first.stride()))
    for place, value in zip(result, values, strict=True):
        place.copy_(value)
    return result
