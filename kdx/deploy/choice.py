"""Which matrices are faster as CSR and which dense: measured on this machine, for one batch size."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import scipy.sparse

from kdx.deploy.layers import Array, Matrix, Runtime
from kdx.deploy.network import Network

# Fractions of zeros at which CSR is timed, to find where it begins to win.
LADDER = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
REPETITIONS = 300
SECONDS = 0.03


@dataclass(frozen=True)
class Choice:
    """One matrix: its sparsity, milliseconds as CSR and dense, and the sparsity from which CSR wins (None: never)."""

    name: str
    shape: tuple[int, int]
    sparsity: float
    csr_ms: float
    dense_ms: float
    crossover: float | None

    @property
    def runtime(self) -> Runtime:
        """The faster one."""
        return "csr" if self.csr_ms <= self.dense_ms else "dense"


def choices(network: Network, images: Array) -> list[Choice]:
    """Time every matrix both ways on what it sees of `images` (batch, C, H, W), and random ones for the crossover."""
    return [_choice(matrix, columns) for matrix, columns in network.columns(images)]


def fastest(network: Network, measured: Sequence[Choice]) -> Network:
    """The network with every matrix multiplied as its choice says."""
    return network.with_runtimes({choice.name: choice.runtime for choice in measured})


def _choice(matrix: Matrix, columns: Array) -> Choice:
    csr, dense = _milliseconds(matrix.as_runtime("csr"), columns), _milliseconds(matrix.as_runtime("dense"), columns)
    return Choice(matrix.name, matrix.shape, matrix.sparsity, csr, dense, _crossover(matrix, columns, dense))


def _crossover(matrix: Matrix, columns: Array, dense: float) -> float | None:
    """The least sparsity at which random matrices of this shape are as fast as dense ones, on a line between steps."""
    places = np.random.default_rng(0).random(matrix.shape)
    before: tuple[float, float] | None = None
    for sparsity in LADDER:
        content = scipy.sparse.csr_array((places >= sparsity).astype(np.float32))
        content.indices, content.indptr = content.indices.astype(np.int32), content.indptr.astype(np.int32)
        taken = _milliseconds(replace(matrix, csr=content, dense=None), columns)
        if taken <= dense:
            if before is None:
                return sparsity
            earlier, longer = before
            return earlier + (sparsity - earlier) * (longer - dense) / (longer - taken)
        before = sparsity, taken
    return None


def _milliseconds(matrix: Matrix, columns: Array) -> float:
    matrix(columns)
    start, seconds = time.perf_counter(), []
    while len(seconds) < 3 or (len(seconds) < REPETITIONS and time.perf_counter() - start < SECONDS):
        before = time.perf_counter()
        matrix(columns)
        seconds.append(time.perf_counter() - before)
    return 1000 * median(seconds)
