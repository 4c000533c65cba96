"""The steps of a training, captured as CUDA graphs in chunks of some steps and replayed."""

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdx.device.cuda_graphs import WARM_UPS, GraphRecorder, Run
from kdx.training.noise import NoiseSource

log = logging.getLogger(__name__)


Step = Callable[[Tensor, Tensor], None]
"""One training step: draws noise and updates the state, given its examples' indices and its row of hyper-parameters."""

# A captured chunk takes about this long: short enough to stop promptly, long enough for Python to launch the next one
# meanwhile (0.1 ms).
CHUNK_SECONDS = 0.05
MOST_STEPS = 16

# A recording's first play has it brought to the GPU; the last is timed.
TRIAL_PLAYS = 2


class GraphedSteps:
    """The steps of a training, captured singly and in chunks of several, and replayed from any step of an epoch on."""

    def __init__(
        self,
        step: Step,
        changed: Sequence[Tensor],
        sources: Sequence[NoiseSource],
        batch_size: int,
        recorder: GraphRecorder,
    ) -> None:
        """`changed` are all tensors that a step changes; `sources` draw its noise."""
        self._step, self._changed, self._sources = step, changed, sources
        self._batch_size, self._recorder = batch_size, recorder
        self._chunks: dict[int, tuple[Tensor, Tensor, Run]] = {}
        self._size = 0

    def __call__(self, order: Tensor, rows: Tensor, index: int) -> int:
        """Execute a step or a chunk from step `index` of the epoch on; return how many steps that were.

        `order` holds the epoch's example indices (..., examples), `rows` the hyper-parameters (steps, ..., numbers).
        Raises CaptureFailed.
        """
        if not self._size:
            self._size = self._rehearsed(order, rows)
        size = self._size if len(rows) - index >= self._size else 1
        if size not in self._chunks:
            self._chunks[size] = self._recorded(order, rows, size)
        own_batches, own_rows, play = self._chunks[size]
        own_batches.copy_(self._batches(order, index, size))
        own_rows.copy_(rows[index : index + size])
        play()
        return size

    def _recorded(self, order: Tensor, rows: Tensor, size: int) -> tuple[Tensor, Tensor, Run]:
        # Contiguous, however many steps and models there are: a compiled step takes for granted that its inputs lie as
        # they did at its first call.
        own_batches = self._batches(order, 0, size).clone(memory_format=torch.contiguous_format)
        own_rows = rows[:size].clone()

        def run() -> None:
            for batch, row in zip(own_batches, own_rows, strict=True):
                self._step(batch, row)

        play = self._recorder.capture(run, [source.generator for source in self._sources])
        return own_batches, own_rows, play

    def _batches(self, order: Tensor, index: int, size: int) -> Tensor:
        """The example indices of `size` steps from step `index` of the epoch on: (size, ..., batch)."""
        first = index * self._batch_size
        chosen = order[..., first : first + size * self._batch_size]
        return chosen.unflatten(-1, (size, self._batch_size)).movedim(-2, 0)

    def _rehearsed(self, order: Tensor, rows: Tensor) -> int:
        """Execute some steps and undo them; return how many steps a captured chunk should have.

        It is a captured step that is timed, since one launched by Python may take many times as long.
        """
        before = [tensor.clone() for tensor in self._changed]
        positions = [source.position() for source in self._sources]
        (batch,) = self._batches(order, 0, 1).contiguous()
        with self._recorder.warmup():
            for _ in range(WARM_UPS):
                self._step(batch, rows[0])
        self._chunks[1] = self._recorded(order, rows, 1)
        _, _, play = self._chunks[1]
        seconds = CHUNK_SECONDS
        for _ in range(TRIAL_PLAYS):
            _finish(order.device)
            started = time.perf_counter()
            play()
            _finish(order.device)
            seconds = time.perf_counter() - started
        for tensor, value in zip(self._changed, before, strict=True):
            tensor.copy_(value)
        for source, position in zip(self._sources, positions, strict=True):
            source.seek(position)
        size = min(MOST_STEPS, len(rows), max(1, int(CHUNK_SECONDS / seconds)))
        log.info("captured in chunks of %d steps, each of which takes %.2f ms by itself", size, 1000 * seconds)
        return size


def _finish(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
