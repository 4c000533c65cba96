"""The state of a training, all that a step changes: of one model, or of several whose tensors are stacked."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class State:
    """All that a step changes, in place: the network, the optimizer's moments, the sums of the loss terms.

    `first` are moments of the gradients, Adam's mean or SGD's momentum, `second` those of their squares, for Adam only;
    `average` is the running average of `network()`, empty if there is none. `sums` (1 + terms,) is the total loss and
    every term, summed since it was last set to zero. `broken` (1 + terms,) counts the steps after which such a sum was
    not finite; from the first of them on parameters and average are frozen. The state of several models has a leading
    model dimension in every tensor.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    sums: Tensor
    broken: Tensor
    average: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(
        student: nn.Module, terms: int, sampled: Collection[str] = (), *, squares: bool = True, average: bool = False
    ) -> "State":
        """The state that shares its memory with the student's parameters and buffers; moments are zero.

        Parameters named in `sampled` have no moments; without `squares` there are first moments only.
        """
        parameters = {name: parameter.detach() for name, parameter in student.named_parameters()}
        learnt = {name: value for name, value in parameters.items() if name not in sampled}
        sums = torch.zeros(1 + terms, device=next(iter(parameters.values())).device)
        buffers = {name: buffer.detach() for name, buffer in student.named_buffers()}
        network = _network(parameters, buffers)
        return State(
            parameters=parameters,
            buffers=buffers,
            first={name: torch.zeros_like(value) for name, value in learnt.items()},
            second={name: torch.zeros_like(value) for name, value in learnt.items()} if squares else {},
            sums=sums,
            broken=torch.zeros_like(sums),
            average={name: value.clone() for name, value in network.items()} if average else {},
        )

    @staticmethod
    def stack(states: Sequence["State"]) -> "State":
        """The stacked state of several models, copied into its own memory."""
        return State(
            parameters=stacked([state.parameters for state in states]),
            buffers=stacked([state.buffers for state in states]),
            first=stacked([state.first for state in states]),
            second=stacked([state.second for state in states]),
            sums=torch.stack([state.sums for state in states]),
            broken=torch.stack([state.broken for state in states]),
            average=stacked([state.average for state in states]),
        )

    @cached_property
    def models(self) -> list["State"]:
        """The states of the stacked models, which share the memory of this one."""
        groups = self.parameters, self.buffers, self.first, self.second
        own = (unstacked(group, len(self.sums)) for group in groups)
        average = unstacked(self.average, len(self.sums))
        together = zip(*own, self.sums.unbind(), self.broken.unbind(), average, strict=True)
        return [State(*tensors) for tensors in together]

    def broken_parts(self, *, buffers: bool) -> list[str]:
        """The names of what is not finite: gradients, by the moments, else parameters, else `buffers` if included."""
        groups = {
            "the gradient of ": self.first,
            "the square of the gradient of ": self.second,
            "": self.parameters | (self.buffers if buffers else {}),
        }
        names = [(prefix, name) for prefix, group in groups.items() for name in group]
        # All are computed on the device before the first result is read, so that it waits only once.
        fine = torch.stack([value.isfinite().all() for group in groups.values() for value in group.values()])
        broken = [each for each, finite in zip(names, fine.tolist(), strict=True) if not finite]
        return [prefix + name for prefix, name in broken if prefix == broken[0][0]]

    def network(self) -> dict[str, Tensor]:
        """The network's parameters and buffers by name."""
        return _network(self.parameters, self.buffers)

    def result(self) -> dict[str, Tensor]:
        """The tensors of the network that is evaluated and kept: the running average, if there is one."""
        return self.average or self.network()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for a checkpoint, without `broken`: a checkpoint is written only if all is finite."""
        others = {"first": self.first, "second": self.second, "average": self.average}
        return self.network() | _named(others) | {"sums": self.sums}


def _network(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _named({"parameter": parameters, "buffer": buffers})


def _named(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}


def stacked(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several models with a leading model dimension; the memory format of each stays."""
    return {name: _stack([tensors[name] for tensors in models]) for name in models[0]}


def unstacked(tensors: Mapping[str, Tensor], models: int) -> list[dict[str, Tensor]]:
    """The tensors of each of `models` models, as views of the stacked ones."""
    return [{name: value[index] for name, value in tensors.items()} for index in range(models)]


def _stack(values: Sequence[Tensor]) -> Tensor:
    # torch.stack would change the memory format of filters, and so the rounding of convolutions.
    first = values[0]
    result = first.new_empty_strided((len(values), *first.shape), (first.numel(), *first.stride()))
    for place, value in zip(result, values, strict=True):
        place.copy_(value)
    return result
