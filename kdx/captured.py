"""Training steps captured as CUDA graphs: some in a row as one launch, so that no step waits for Python."""

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
"""Work on tensors that lie at the same place every time."""
Step = Callable[[Tensor, Tensor], None]
"""One training step: draws noise and updates the state, given its examples' numbers and its row of numbers."""

# A captured chunk has as many steps as are done in this time: a stop is heeded at once, and Python has long launched
# the next chunk, for which it needs a tenth of a millisecond.
CHUNK_SECONDS = 0.05
MOST_STEPS = 16
# Chunks that are under way at once; with fewer the GPU would wait for Python, with more a stop would wait for the GPU.
AHEAD = 3
# Kernels are loaded and compiled, workspaces allocated and algorithms chosen in the first.
WARM_UPS = 3
# A recording's first play has it brought to the GPU; the last is timed.
TRIAL_PLAYS = 2

log = logging.getLogger(__name__)


class CaptureFailed(RuntimeError):
    """Work that cannot be captured as a CUDA graph; the message is one line."""


class Recorder(Protocol):
    """What makes a recording of work, to be played as often as wanted without Python."""

    def rehearsal(self) -> AbstractContextManager[None]:
        """Where the work is done some times before it is recorded."""
        ...

    def record(self, run: Run, generators: Sequence[torch.Generator]) -> Run:
        """Record the work without doing it; playing it does it, with the generators' numbers at that time.

        Raises CaptureFailed where it cannot be recorded.
        """
        ...

    def close(self) -> None:
        """Forget all recordings, and give back their memory."""
        ...


class Graphs:
    """Recordings as CUDA graphs, in one pool of memory; at most `AHEAD` of them are under way at once."""

    def __init__(self) -> None:
        self._graphs: list[torch.cuda.CUDAGraph] = []
        # They are never replayed at the same time, so one may use what the others have left.
        self._pool = torch.cuda.graph_pool_handle()
        # One for rehearsals and captures, because cuBLAS keeps memory for every stream that it has seen.
        self._stream = torch.cuda.Stream()
        self._under_way: deque[torch.cuda.Event] = deque()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """On the stream of the captures."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, run: Run, generators: Sequence[torch.Generator]) -> Run:
        """Capture the work; raises CaptureFailed, or torch.OutOfMemoryError."""
        graph, failure = torch.cuda.CUDAGraph(), None
        for generator in generators:
            graph.register_generator_state(generator)
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                try:
                    run()
                except Exception as error:
                    # To end a capture that broke is an error as well, which says less.
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
        # To begin a capture sets where the generators stand, on its stream; what is replayed sets it again, on ours.
        stream.wait_stream(self._stream)
        self._graphs.append(graph)
        return lambda: self._play(graph)

    def _abandon(self) -> None:
        """Give back the memory of a capture that broke, which torch, up to 2.11 at least, keeps in the pool."""
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # where the capture has ended by itself
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)

    def close(self) -> None:
        """Destroy the graphs now: while another one is captured it would not be allowed."""
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
            # This waits for a part of what is under way, so the GPU has work all the time.
            self._under_way.popleft().synchronize()


@contextmanager
def recorded(run: Run, recorder: Recorder | None) -> Iterator[Run]:
    """The work as a recording, where there is a recorder; it is done some times before."""
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
    """Steps of a training, recorded in chunks of some and singly, and played from any step of an epoch on."""

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
        """Take steps from number `index` of the epoch on, by its order and rows; how many were taken.

        `order` is (..., examples), `rows` (steps, ..., numbers). Raises CaptureFailed.
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
        """The examples of so many steps from number `index` of the epoch on: (size, ..., batch)."""
        first = index * self._batch_size
        chosen = order[..., first : first + size * self._batch_size]
        return chosen.unflatten(-1, (size, self._batch_size)).movedim(-2, 0)

    def _rehearsed(self, order: Tensor, rows: Tensor) -> int:
        """Take some steps and undo them; how many shall be recorded as a chunk.

        What is timed is a recorded step: one that Python launches may take many times as long.
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
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
