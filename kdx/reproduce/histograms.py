"""Weight histograms of a figure's networks, stored beside the figure, since run folders may be deleted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdx.reproduce.jobs import Job, JobResult
from kdx.runs.reader import Record, read_rows
from kdx.storage.files import write_csv
from kdx.storage.tensors import load_tensors

TABLE = "weights.csv"
# Odd, so that exact zeros have the bin in the middle to themselves and their closest neighbours.
BINS = 101


class Bin(Record):
    """A row of weights.csv: how many weights of a run lie between `left` and `right`, and how many are exactly 0."""

    row: str
    run: str
    left: float
    right: float
    weights: int
    zeros: int


@dataclass(frozen=True)
class Histogram:
    """A network's weights in bins that are symmetric about 0: `edges` (bins + 1,), `counts` (bins,)."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    zeros: int

    @property
    def width(self) -> float:
        """The width of a bin."""
        return self.edges[-1] * 2 / len(self.counts)


Histograms = Mapping[tuple[str, str], Histogram]
"""Histograms by row label and run id."""


def drawn(done: Sequence[JobResult]) -> list[JobResult]:
    """The runs whose weights are drawn: the first of each row."""
    return [done[number] for number in first_of_rows([each.job for each in done])]


def first_of_rows(jobs: Sequence[Job]) -> list[int]:
    """The indices of the first job of each row, whose weights are drawn."""
    return sorted({job.row: number for number, job in reversed(list(enumerate(jobs)))}.values())


def histograms_of(done: Sequence[JobResult], known: Histograms) -> dict[tuple[str, str], Histogram]:
    """The histograms of the drawn runs, with common bins; `known` has those of runs without a folder here."""
    finished = [each for each in drawn(done) if each.status == "finished"]
    told = {key: known[key] for each in finished if (key := _key(each)) in known and each.recorded is not None}
    weights = {_key(each): _matrices(each) for each in finished if each.recorded is None}
    if not weights:
        return told
    limit = max(float(np.abs(each).max()) for each in weights.values()) or 1.0
    width = max((each.width for each in told.values()), default=2 * limit / BINS)
    # As many bins as reach the limit, but no fewer than elsewhere.
    beside = max((BINS - 1) // 2, int(np.ceil(limit / width - 0.5 - 1e-9)))
    edges = width * (np.arange(2 * beside + 2) - beside - 0.5)
    return told | {key: _histogram(each, edges) for key, each in weights.items()}


def read_histograms(folder: Path) -> dict[tuple[str, str], Histogram]:
    """The histograms stored in a figure's folder, empty if there are none; raises Damaged if the file does not fit."""
    if not (folder / TABLE).exists():
        return {}
    found: dict[tuple[str, str], list[Bin]] = {}
    for line in read_rows(folder / TABLE, Bin):
        found.setdefault((line.row, line.run), []).append(line)
    return {
        key: Histogram(
            (*(line.left for line in lines), lines[-1].right),
            tuple(line.weights for line in lines),
            sum(line.zeros for line in lines),
        )
        for key, lines in found.items()
    }


def write_histograms(folder: Path, histograms: Histograms) -> None:
    """Write weights.csv into a figure's folder."""
    rows = [
        {"row": row, "run": run, "left": left, "right": right, "weights": count, "zeros": each.zeros if middle else 0}
        for (row, run), each in histograms.items()
        for left, right, count in zip(each.edges, each.edges[1:], each.counts, strict=False)
        for middle in [left < 0 < right]
    ]
    write_csv(folder / TABLE, tuple(Bin.model_fields), rows)


def _histogram(weights: np.ndarray, edges: np.ndarray) -> Histogram:
    counts, _ = np.histogram(weights, edges)
    return Histogram(tuple(map(float, edges)), tuple(map(int, counts)), int((weights == 0).sum()))


def _key(done: JobResult) -> tuple[str, str]:
    return done.job.row, done.job.run


def _matrices(done: JobResult) -> np.ndarray:
    """All weights (number,) of a finished row's network: matrices and filters, no biases."""
    file = "teacher.safetensors" if done.job.subject == "teacher" else "student.safetensors"
    tensors, _ = load_tensors(done.job.folder.path / file)
    return np.concatenate([tensor.numpy().ravel() for tensor in tensors.values() if tensor.ndim > 1])
