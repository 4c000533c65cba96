"""All runs on the page, from their folders and from the tables and figures that contain them."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kdx.bench.results import Inference, read_inference
from kdx.reproduce.reader import Configured, Job, Table, value
from kdx.runs.reader import number, read_figures, reading
from kdx.runs.sanity import sanity_warnings
from kdx.storage.checksums import METRICS

# With libyaml, hundreds of configurations take a second less.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
NUMBERS = (
    *("seed", "epochs", "test_error_percent", "val_error_percent", "teacher_test_error_percent", "sparsity_percent"),
    *("R_s", "R_c", "memory_compression", "latency_ms", "train_seconds", "dense_bytes", "csr_bytes"),
)
PLACES = {"runs": "runs/*/*/*/[!.]*", "teachers": "teachers/[!.]*"}


@dataclass(frozen=True)
class Use:
    """A row of a table or figure that contains a run, with the seed and anchor of each run of that row."""

    source: Table
    row: str
    runs: tuple[tuple[int | None, str], ...]


@dataclass(frozen=True)
class Run:
    """A run, a teacher or an untrained network, as far as the files describe it; `anchor` is its place in the page.

    `settings` is the configuration and `text` its YAML; both are empty if no file has it. `recorded` is the machine of
    a run that its table took from an earlier one.
    """

    anchor: str
    id: str
    status: str
    reason: str = ""
    is_teacher: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    command: str = ""
    folder: Path | None = None
    recorded: dict[str, Any] = field(default_factory=dict)
    inference: Inference | None = None
    uses: tuple[Use, ...] = ()

    @property
    def title(self) -> str:
        """The run's title, such as `st-vbd on mnist`."""
        names = [self._name("method"), self._name("dataset")]
        if self.is_teacher:
            names[0] = f"teacher {self._name('teacher') or self._name('student')}"
        return " on ".join(filter(None, names)) or f"run {self.id}"

    @property
    def student(self) -> str:
        """The name of the trained network, if the files have it."""
        return self._name("student")

    @property
    def warnings(self) -> list[str]:
        """Why its figures are worthless, if its folder is there; see `kdx.runs.sanity`."""
        return sanity_warnings(self.figures) if self.folder else []

    def number(self, key: str) -> float | None:
        """A numerical figure, or None."""
        value = self.figures.get(key)
        return value if isinstance(value, int | float) else None

    def _name(self, group: str) -> str:
        of_settings = self.settings.get(group)
        name = self.figures.get(group) or (of_settings.get("name") if isinstance(of_settings, dict) else None)
        return str(name or "")


def run_folders(outputs: Path) -> tuple[list[Path], list[Path]]:
    """The folders of runs and teachers: the finished ones, and those without metrics.json."""
    folders = [path for pattern in PLACES.values() for path in sorted(outputs.glob(pattern)) if path.is_dir()]
    finished = [path for path in folders if (path / METRICS).exists()]
    return finished, [path for path in folders if path not in set(finished)]


def read_run(folder: Path, outputs: Path) -> Run:
    """A finished run from its folder; raises Damaged if one of its files does not fit."""
    with reading(folder / METRICS):
        figures = read_figures(folder)
        # The page sorts by these, so they must be numbers.
        for key in NUMBERS:
            number(figures, key)
    config = folder / "config.yaml"
    with reading(config):
        text = config.read_text(encoding="utf-8")
        try:
            settings = yaml.load(text, LOADER)
        except yaml.YAMLError:
            raise ValueError("it is not YAML") from None
        if not isinstance(settings, dict):
            raise ValueError("it holds no settings")
    teacher = folder.relative_to(outputs).parts[0] == "teachers"
    return Run(
        f"run-{folder.name}",
        folder.name,
        "finished",
        is_teacher=teacher,
        figures=figures,
        settings=settings,
        text=text,
        folder=folder,
        inference=read_inference(folder),
    )


def catalogue(folders: Iterable[Run], sources: Iterable[Table]) -> tuple[dict[str, Run], dict[str, list[Use]]]:
    """All runs by anchor, and the rows of every table or figure by name; a run's folder precedes tables."""
    runs = {run.anchor: run for run in folders}
    uses: dict[str, list[Use]] = {}
    for source in sources:
        rows: dict[str, list[tuple[int | None, str]]] = {}
        for index, job in enumerate(source.jobs):
            told = _told(source, index, job)
            rows.setdefault(job.row, []).append((job.seed, told.anchor))
            runs[told.anchor] = _joined(runs[told.anchor], told) if told.anchor in runs else told
        uses[source.name] = [Use(source, row, tuple(members)) for row, members in rows.items()]
        for use in uses[source.name]:
            for _, anchor in use.runs:
                runs[anchor] = replace(runs[anchor], uses=(*runs[anchor].uses, use))
    return runs, uses


def _told(source: Table, index: int, job: Job) -> Run:
    """The run as a table or figure records it."""
    more = source.configured.get((job.row, job.seed), Configured())
    # A teacher has a seed of its own, in its settings.
    seed = {"seed": job.seed} if more.of == "student" else {}
    figures = {**seed, **(job.model_extra or {}), **(more.model_extra or {})}
    settings = more.configuration
    return Run(
        # A network that needs no training has no run.
        f"run-{job.run}" if job.run else f"job-{source.name}-{index}",
        job.run,
        job.status,
        job.reason,
        is_teacher=more.of == "teacher",
        figures={key: value(one) if isinstance(one, str) else one for key, one in figures.items()},
        settings=settings,
        text=yaml.dump(settings, Dumper=DUMPER, sort_keys=False, allow_unicode=True) if settings else "",
        command=job.command,
        recorded=more.recorded or {},
    )


def _joined(known: Run, told: Run) -> Run:
    finished = told if told.status == "finished" and known.status != "finished" else known
    return replace(
        known,
        status=finished.status,
        reason=finished.reason,
        figures={**known.figures, **{key: one for key, one in told.figures.items() if key not in known.figures}},
        settings=known.settings or told.settings,
        text=known.text or told.text,
        command=known.command or told.command,
        recorded=known.recorded or told.recorded,
    )
