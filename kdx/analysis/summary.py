"""The summary of a sweep: each experiment once, with mean and 95 % interval over its seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdx import formatting
from kdx.analysis.differences import MISSING, Settings, differing_keys, is_hidden, setting_text
from kdx.analysis.statistics import Estimate
from kdx.runs.reader import Figures, execution_text, number, read_figures, read_settings
from kdx.storage.checksums import METRICS
from kdx.storage.files import write_csv

SEED = "seed"
TEACHER_SEEDS = frozenset({"teacher.seed", "teacher2.seed", "teacher3.seed"})
SEEDS = frozenset({SEED, *TEACHER_SEEDS})
NAMES = ("dataset", "teacher", "student", "method", "epochs")
FIGURES = (
    *("test_error_percent", "val_error_percent", "R_s", "R_c", "sparsity_percent"),
    *("memory_compression", "latency_ms", "train_seconds"),
)
PARTS = ("mean", "sd", "ci95_low", "ci95_high")

Content = tuple[Settings, Figures]
"""A run's settings by dotted key, and its figures."""
Key = tuple[tuple[str, "str | Key"], ...]
"""The settings that runs of one experiment share, as names and values."""


@dataclass(frozen=True)
class Group:
    """The runs of one experiment, which differ only in their seed; `lacking` are the seeds that did not finish."""

    settings: Settings
    figures: list[Figures]
    lacking: tuple[int, ...] = ()

    @property
    def asked(self) -> int:
        """The number of runs, finished or not."""
        return len(self.figures) + len(self.lacking)

    @property
    def executions(self) -> list[str]:
        """The ways in which the runs were executed; several ways differ in float32 rounding only."""
        return list(dict.fromkeys(map(execution_text, self.figures)))

    def estimate(self, key: str) -> Estimate | None:
        """The estimate of a figure over the finished runs; None if there is no run or a run lacks the figure."""
        values = [number(one, key) for one in self.figures]
        found = [value for value in values if value is not None]
        return Estimate(tuple(found)) if found and len(found) == len(values) else None


def groups_of(runs: Iterable[Path | Settings]) -> list[Group]:
    """The runs grouped by experiment, in the order given; raises UserError if a file is damaged.

    A run is the folder of a finished one, or the settings of one without a result, whose seed is then lacking; no run
    may be given twice. The teacher's seed, or that of the run whose weights are the checkpoint, may vary along with
    `seed`, as in teacher.seed=${seed}; if one seed occurs with several of them, these are separate experiments.
    """
    return grouped([read_run(run) if isinstance(run, Path) else (run, Figures()) for run in runs])


def read_run(run: Path) -> Content:
    """The settings of a finished run by dotted key, and its figures; raises UserError if a file is damaged."""
    return read_settings(run), read_figures(run)


def grouped(runs: Sequence[Content]) -> list[Group]:
    """`groups_of` for runs that have been read already; runs that failed have no figures."""
    groups: list[Group] = []
    for wide in _split(runs, SEEDS):
        seeds = [settings[SEED] for settings, _ in wide]
        together = len(set(seeds)) == len(seeds)
        varying = frozenset({SEED}) | (TEACHER_SEEDS if together else frozenset())
        for members in _seeds_apart(_split(wide, varying)):
            settings = {key: value for key, value in members[0][0].items() if key not in varying}
            lacking = tuple(own[SEED] for own, figures in members if not figures)
            groups.append(Group(settings, [figures for _, figures in members if figures], lacking))
    return groups


def _seeds_apart(groups: Iterable[list[Content]]) -> Iterator[list[Content]]:
    """The groups, but with every run alone in those in which two runs have the same seed.

    Such runs differ in something that is no setting, such as the content of their checkpoint file.
    """
    for members in groups:
        seeds = {settings.get(SEED) for settings, _ in members}
        yield from ([members] if len(seeds) == len(members) else [[member] for member in members])


def _split(runs: Sequence[Content], varying: frozenset[str]) -> list[list[Content]]:
    """The runs, grouped by all settings that can change a result, but for `varying`."""
    found: dict[Key, list[Content]] = {}
    for settings, figures in runs:
        found.setdefault(_key(settings, varying), []).append((settings, figures))
    return list(found.values())


def _key(settings: Settings, varying: frozenset[str]) -> Key:
    """All settings that can change a result, but for `varying`, as texts."""
    names = (name for name in sorted(settings) if name not in varying and not is_hidden(name))
    # Weights that a run left vary with its seed, as a teacher does with its own.
    pooled = varying >= TEACHER_SEEDS
    return tuple((name, _meaning(name, settings[name], pooled=pooled)) for name in names)


def _meaning(name: str, value: Any, *, pooled: bool) -> str | Key:
    """A setting as text; for a checkpoint written by a finished run, if seeds are pooled, that run's settings.

    That run's own seed is left out, as for the generations of a chain.
    """
    if pooled and name.rpartition(".")[2] == "checkpoint" and value is not None:
        run, file = Path(str(value)).parent, Path(str(value)).name
        if file == "student.safetensors" and (run / METRICS).is_file():
            return _key(read_settings(run), SEEDS)
    return setting_text(value)


def seeds_text(group: Group) -> str:
    """How many runs have figures, such as `3`, or `2 of 3` with the seeds that are lost."""
    if not group.lacking:
        return str(len(group.figures))
    return f"{len(group.figures)} of {group.asked}\nlost {', '.join(map(str, sorted(group.lacking)))}"


def write_summary(path: Path, groups: Sequence[Group]) -> None:
    """Write one row per experiment: its name, the settings that differ, its runs, and the estimate of each figure.

    The `n` runs with `seeds` have finished, those with the seeds `lacking` have not.
    """
    keys = differing_keys([group.settings for group in groups])
    differing = [key for key in keys if key not in ("dataset.name", "teacher.name")]
    estimates = [f"{key}_{part}" for key in FIGURES for part in PARTS]
    rows = [
        {name: setting_name(group, name) for name in NAMES}
        | {key: setting_text(group.settings.get(key, MISSING)) for key in differing}
        | {"n": len(group.figures)}
        | {"seeds": _joined(group, "seed"), "lacking": " ".join(map(str, group.lacking))}
        | {"execution": "; ".join(group.executions), "runs": _joined(group, "run_id")}
        | dict(_cells(group))
        for group in groups
    ]
    write_csv(path, [*NAMES, *differing, "n", "seeds", "lacking", *estimates, "execution", "runs"], rows)


def _cells(group: Group) -> Iterable[tuple[str, float | None]]:
    for key in FIGURES:
        of = group.estimate(key)
        for part, attribute in zip(PARTS, ("mean", "sd", "low", "high"), strict=True):
            yield f"{key}_{part}", None if of is None else getattr(of, attribute)


def setting_name(group: Group, key: str) -> str:
    """A value that the runs of a group share, or its range if early stopping makes it differ."""
    values = sorted({one[key] for one in group.figures if one.get(key) is not None})
    if not group.figures:
        return str(group.settings.get("trainer.epochs" if key == "epochs" else f"{key}.name", formatting.ABSENT))
    return "-".join(map(str, dict.fromkeys([values[0], values[-1]]))) if values else formatting.ABSENT


def _joined(group: Group, key: str) -> str:
    return " ".join(str(one.get(key)) for one in group.figures)


def write_failures(path: Path, failures: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per job without a run (job, overrides, reason), or remove the file if there is none."""
    if failures:
        write_csv(path, ["job", "overrides", "reason"], failures)
    else:
        path.unlink(missing_ok=True)
