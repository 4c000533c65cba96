"""A recorder without a GPU: operations are noted, undone, and repeated on the same memory, with no Python in between.

Like a CUDA graph it repeats what was done with the tensors, whatever Python decided or read on the way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdx.device.cuda_graphs import Run


class _Noting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[Any, tuple, dict, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.is_write:
                for tensor in tree_leaves(given.get(argument.name)):
                    self._keep(tensor)
        result = func(*args, **kwargs)
        self.notes.append((func, args, kwargs, result))
        return result

    def _keep(self, tensor: Tensor) -> None:
        whole = tensor.new_empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        self.before.setdefault(tensor.untyped_storage().data_ptr(), (whole, whole.clone()))


class Tape:
    """A `kdx.device.cuda_graphs.GraphRecorder`; `played` is called before each replay, `closed` counts closings."""

    def __init__(self, played: Callable[[int], None] = lambda number: None) -> None:
        self.played, self.plays, self.closed = played, 0, 0

    @contextmanager
    def warmup(self) -> Iterator[None]:
        """Here."""
        yield

    def capture(self, run: Run, generators: Sequence[torch.Generator]) -> Run:
        """Do the work, note it and undo it."""
        positions = [generator.get_state() for generator in generators]
        with _Noting() as noting:
            run()
        for whole, before in noting.before.values():
            whole.copy_(before)
        for generator, position in zip(generators, positions, strict=True):
            generator.set_state(position)
        return lambda: self._play(noting.notes)

    def close(self) -> None:
        """Count."""
        self.closed += 1

    @torch.no_grad()
    def _play(self, notes: list[tuple[Any, tuple, dict, Any]]) -> None:
        self.plays += 1
        self.played(self.plays)
        for func, args, kwargs, result in notes:
            returned = func._schema.returns
            if returned and all(each.alias_info is not None and not each.alias_info.is_write for each in returned):
                # A view, of memory in which the numbers are by now.
                continue
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)
