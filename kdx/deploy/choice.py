"""Which matrices are faster as CSR and which dense: measured on this machine for one batch size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import scipy.sparse

from kdx.deploy.layers import Array, Matrix, Runtime
from kdx.deploy.network import Network
from kdx.deploy.rounds import Rounds, Speedup, speedup, time_in_rounds

# Fractions of zeros at which CSR is timed, to find where it begins to win.
LADDER = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
SECONDS = 0.03
CSR, DENSE = "csr", "dense"


@dataclass(frozen=True)
class Choice:
    """The measurement of one matrix: its sparsity, milliseconds as CSR and as dense, and the speedup of CSR over dense.

    `crossover` is the sparsity from which CSR is faster, None for never; `crossover_is_noise` says whether noise leaves
    it open.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    csr_ms: float
    dense_ms: float
    against_dense: Speedup
    crossover: float | None
    crossover_is_noise: bool

    @property
    def runtime(self) -> Runtime:
        """The faster runtime; dense if noise leaves it open."""
        return "csr" if self.against_dense.median >= 1 and not self.against_dense.is_noise else "dense"


def choices(network: Network, images: Array) -> list[Choice]:
    """Time every matrix as CSR and dense on its inputs for `images` (batch, C, H, W), and find its crossover."""
    return [_choice(matrix, columns) for matrix, columns in network.columns(images)]


def fastest(network: Network, measured: Sequence[Choice]) -> Network:
    """The network with every matrix multiplied by its faster runtime."""
    return network.with_runtimes({choice.name: choice.runtime for choice in measured})


def _choice(matrix: Matrix, columns: Array) -> Choice:
    calls: dict[str | float, Callable[[], object]] = {
        CSR: partial(matrix.as_runtime("csr"), columns),
        DENSE: partial(matrix.as_runtime("dense"), columns),
    }
    places = np.random.default_rng(0).random(matrix.shape)
    for sparsity in LADDER:
        content = scipy.sparse.csr_array((places >= sparsity).astype(np.float32))
        content.indices, content.indptr = content.indices.astype(np.int32), content.indptr.astype(np.int32)
        calls[sparsity] = partial(replace(matrix, csr=content, dense=None), columns)
    taken = time_in_rounds(calls, SECONDS)
    ratio = speedup(taken[CSR], over=taken[DENSE])
    times = _milliseconds(taken[CSR]), _milliseconds(taken[DENSE])
    return Choice(matrix.name, matrix.shape, matrix.sparsity, *times, ratio, *_crossover(taken))


def _crossover(taken: Mapping[str | float, Rounds]) -> tuple[float | None, bool]:
    """The least sparsity at which random matrices of this shape are as fast as dense ones, linearly interpolated.

    Also whether the measurements around it are too noisy to tell.
    """
    before: tuple[float, Speedup] | None = None
    for sparsity in LADDER:
        ratio = speedup(taken[sparsity], over=taken[DENSE])
        if ratio.median >= 1:
            if before is None:
                return sparsity, ratio.is_noise
            earlier, slower = before
            # In units of the dense time.
            longer, shorter = 1 / slower.median, 1 / ratio.median
            crossing = earlier + (sparsity - earlier) * (longer - 1) / (longer - shorter)
            return crossing, slower.is_noise or ratio.is_noise
        before = sparsity, ratio
    return None, before is not None and before[1].is_noise


def _milliseconds(rounds: Rounds) -> float:
    return 1000 * median(seconds for calls in rounds for seconds in calls)
