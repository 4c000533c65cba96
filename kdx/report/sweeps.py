"""Sweeps, read from their summaries."""

from dataclasses import dataclass
from pathlib import Path

from kdx.analysis.summary import FIGURES, PARTS
from kdx.runs.reader import Record, read_lines, read_rows, reading

SUMMARY, FAILED = "summary.csv", "failed.csv"
# The columns beside those that say which experiment it is.
OTHERS = ("n", "seeds", "runs", *(f"{key}_{part}" for key in FIGURES for part in PARTS))
# Earlier versions did not tell it.
LACKING = "lacking"


class Failure(Record):
    """A job without a result."""

    job: int
    overrides: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Estimated:
    """The estimate of a figure over seeds; `half_width` is None for one seed."""

    mean: float
    half_width: float | None


@dataclass(frozen=True)
class Experiment:
    """A row of summary.csv: its name, the ids of its runs, and its figures.

    `lacking` are the seeds whose runs failed.
    """

    names: dict[str, str]
    n: int
    seeds: list[str]
    lacking: list[str]
    runs: list[str]
    figures: dict[str, Estimated | None]


@dataclass(frozen=True)
class Sweep:
    """A finished sweep, whose experiments all have the same columns."""

    name: str
    experiments: list[Experiment]
    failures: list[Failure]

    @property
    def figures(self) -> list[str]:
        """The figures that at least one experiment has."""
        return [key for key in FIGURES if any(one.figures[key] for one in self.experiments)]


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep with a summary; raises Damaged if a file does not fit."""
    path, failed = folder / SUMMARY, folder / FAILED
    with reading(path):
        experiments = [_experiment(line) for line in read_lines(path, OTHERS)]
    return Sweep(folder.name, experiments, read_rows(failed, Failure) if failed.exists() else [])


def _experiment(line: dict[str, str]) -> Experiment:
    return Experiment(
        {key: text for key, text in line.items() if key not in (*OTHERS, LACKING)},
        int(line["n"]),
        line["seeds"].split(),
        line.get(LACKING, "").split(),
        line["runs"].split(),
        {key: _estimate(line, key) for key in FIGURES},
    )


def _estimate(line: dict[str, str], key: str) -> Estimated | None:
    mean, _, low, high = (line[f"{key}_{part}"] for part in PARTS)
    if not mean:
        return None
    return Estimated(float(mean), (float(high) - float(low)) / 2 if low and high else None)
