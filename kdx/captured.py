"""CUDA graph capture of training steps: several steps are replayed with one launch, so that none waits for Python."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor

from kdx.errors import one_line
from kdx.noise import NoiseSource

Run = Callable[[], None]
"""Work on tensors whose memory addresses never change, so that it can be captured."""
Step = Callable[[Tensor, Tensor], None]
"""One training step: draws noise and updates the state, given its examples' indices and its row of hyper-parameters."""

# A captured chunk takes about this long: short enough to stop promptly, long enough for Python to launch the next one
# meanwhile (0.1 ms).
CHUNK_SECONDS = 0.05
MOST_STEPS = 16
# Chunks in flight; with fewer the GPU would wait for Python, with more a stop would wait for the GPU.
AHEAD = 3
# Kernels are loaded and compiled, workspaces allocated and algorithms chosen in the first.
WARM_UPS = 3
# A recording's first play has it brought to the GPU; the last is timed.
TRIAL_PLAYS = 2

log = logging.getLogger(__name__)


class CaptureFailed(RuntimeError):
    """Work could not be captured as a CUDA graph; the message is one line."""


class Recorder(Protocol):
    """Captures work, so that it can be replayed any number of times without Python."""

    def rehearsal(self) -> AbstractContextManager[None]:
        """The context for the warm-up runs before a capture."""
        ...

    def record(self, run: Run, generators: Sequence[torch.Generator]) -> Run:
        """Capture the work without executing it; the returned function executes it.

        Each replay draws from the generators' state at that time. Raises CaptureFailed if the work cannot be captured.
        """
        ...

    def close(self) -> None:
        """Discard all captures and free their memory."""
        ...


class Graphs:
    """CUDA graphs in one memory pool, of which at most `AHEAD` are in flight at once."""

    def __init__(self) -> None:
        self._graphs: list[torch.cuda.CUDAGraph] = []
        # Graphs are never replayed at the same time, so they can share one memory pool.
        self._pool = torch.cuda.graph_pool_handle()
        # One stream for warm-up and captures, because cuBLAS keeps a workspace for every stream.
        self._stream = torch.cuda.Stream()
        self._under_way: deque[torch.cuda.Event] = deque()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Run on the stream of the captures."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, run: Run, generators: Sequence[torch.Generator]) -> Run:
        """Capture the work as a CUDA graph; raises CaptureFailed or torch.OutOfMemoryError."""
        graph, failure = torch.cuda.CUDAGraph(), None
        for generator in generators:
            graph.register_generator_state(generator)
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                try:
                    run()
                except Exception as error:
                    # Ending a failed capture raises another, less informative error.
                    failure = error
                    raise
        except Exception as error:
            torch.cuda.set_stream(stream)
            self._abandon()
            reason = failure or error
            if isinstance(reason, torch.OutOfMemoryError):
                raise reason from None
            raise CaptureFailed(
                f"the training step cannot be captured as a CUDA graph ({one_line(reason)}); device.graph=false runs it"
                " without"
            ) from reason
        # Beginning a capture sets the generators' state on its stream; a replay sets it again on the current one.
        stream.wait_stream(self._stream)
        self._graphs.append(graph)
        return lambda: self._play(graph)

    def _abandon(self) -> None:
        """Free the memory of a failed capture, which torch, up to 2.11 at least, keeps in the pool."""
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # where the capture has ended by itself
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)

    def close(self) -> None:
        """Destroy the graphs now, since destroying them during another capture is not allowed."""
        torch.cuda.synchronize()
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._under_way.clear()
        torch._C._cuda_clearCublasWorkspaces()

    def _play(self, graph: torch.cuda.CUDAGraph) -> None:
        graph.replay()
        done = torch.cuda.Event(blocking=True)
        done.record()
        self._under_way.append(done)
        if len(self._under_way) > AHEAD:
            # Waits for the oldest chunk only, so that the GPU always has work.
            self._under_way.popleft().synchronize()


@contextmanager
def recorded(run: Run, recorder: Recorder | None) -> Iterator[Run]:
    """The work after some warm-up runs, as a capture if there is a recorder, else unchanged."""
    if recorder is None:
        yield run
        return
    try:
        with recorder.rehearsal():
            for _ in range(WARM_UPS):
                run()
        yield recorder.record(run, ())
    finally:
        recorder.close()


class Chunks:
    """The steps of a training, captured singly and in chunks of several, and replayed from any step of an epoch on."""

    def __init__(
        self,
        step: Step,
        changed: Sequence[Tensor],
        sources: Sequence[NoiseSource],
        batch_size: int,
        recorder: Recorder,
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

        play = self._recorder.record(run, [source.generator for source in self._sources])
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
        with self._recorder.rehearsal():
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
