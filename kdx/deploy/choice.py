"""Which matrices are faster as CSR and which dense: measured on this machine, for one batch size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import scipy.sparse

from kdx.deploy.layers import Array, Matrix, Runtime
from kdx.deploy.network import Network
from kdx.rounds import Rounds, Speedup, speedup, time_in_rounds

# Fractions of zeros at which CSR is timed, to find where it begins to win.
LADDER = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
SECONDS = 0.03
CSR, DENSE = "csr", "dense"


@dataclass(frozen=True)
class Choice:
    """One matrix: its sparsity, milliseconds as CSR and dense, and how many times as fast as dense CSR is.

    `crossover` is the sparsity from which CSR wins (None: never), as far as noise does not leave it open.
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
        """The faster one; dense where noise leaves that open."""
        return "csr" if self.against_dense.median >= 1 and not self.against_dense.is_noise else "dense"


def choices(network: Network, images: Array) -> list[Choice]:
    """Time every matrix both ways on what it sees of `images` (batch, C, H, W), and random ones for the crossover."""
    return [_choice(matrix, columns) for matrix, columns in network.columns(images)]


def fastest(network: Network, measured: Sequence[Choice]) -> Network:
    """The network with every matrix multiplied as its choice says."""
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
    """The least sparsity at which random matrices of this shape are as fast as dense ones, on a line between steps.

    And whether the steps that tell it are noise.
    """
    before: tuple[float, Speedup] | None = None
    for sparsity in LADDER:
        ratio = speedup(taken[sparsity], over=taken[DENSE])
        if ratio.median >= 1:
            if before is None:
                return sparsity, ratio.is_noise
            earlier, slower = before
            # In times of the dense one.
            longer, shorter = 1 / slower.median, 1 / ratio.median
            crossing = earlier + (sparsity - earlier) * (longer - 1) / (longer - shorter)
            return crossing, slower.is_noise or ratio.is_noise
        before = sparsity, ratio
    return None, before is not None and before[1].is_noise


def _milliseconds(rounds: Rounds) -> float:
    return 1000 * median(seconds for calls in rounds for seconds in calls)
