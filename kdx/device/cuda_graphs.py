"""CUDA graph capture of training steps: several steps are replayed with one launch, so that none waits for Python."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import torch

from kdx.errors import one_line

log = logging.getLogger(__name__)


Run = Callable[[], None]
"""Work on tensors whose memory addresses never change, so that it can be captured."""

# Chunks in flight; with fewer the GPU would wait for Python, with more a stop would wait for the GPU.
AHEAD = 3
# Kernels are loaded and compiled, workspaces allocated and algorithms chosen in the first.
WARM_UPS = 3


class CaptureFailed(RuntimeError):
    """Work could not be captured as a CUDA graph; the message is one line."""


class GraphRecorder(Protocol):
    """Captures work, so that it can be replayed any number of times without Python."""

    def warmup(self) -> AbstractContextManager[None]:
        """The context for the warm-up runs before a capture."""
        ...

    def capture(self, run: Run, generators: Sequence[torch.Generator]) -> Run:
        """Capture the work without executing it; the returned function executes it.

        Each replay draws from the generators' state at that time. Raises CaptureFailed if the work cannot be captured.
        """
        ...

    def close(self) -> None:
        """Discard all captures and free their memory."""
        ...


class CudaGraphs:
    """CUDA graphs in one memory pool, of which at most `AHEAD` are in flight at once."""

    def __init__(self) -> None:
        self._graphs: list[torch.cuda.CUDAGraph] = []
        # Graphs are never replayed at the same time, so they can share one memory pool.
        self._pool = torch.cuda.graph_pool_handle()
        # One stream for warm-up and captures, because cuBLAS keeps a workspace for every stream.
        self._stream = torch.cuda.Stream()
        self._under_way: deque[torch.cuda.Event] = deque()

    @contextmanager
    def warmup(self) -> Iterator[None]:
        """Run on the stream of the captures."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, run: Run, generators: Sequence[torch.Generator]) -> Run:
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
def captured(run: Run, recorder: GraphRecorder | None) -> Iterator[Run]:
    """The work after some warm-up runs, as a capture if there is a recorder, else unchanged."""
    if recorder is None:
        yield run
        return
    try:
        with recorder.warmup():
            for _ in range(WARM_UPS):
                run()
        yield recorder.capture(run, ())
    finally:
        recorder.close()
