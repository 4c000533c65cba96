"""Reads an outputs folder; damaged files are listed, and only what depends on them is left out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from kdx.report.runs import Run, Use, catalogue, read_run, run_folders
from kdx.report.sweeps import SUMMARY, Sweep, read_sweep
from kdx.reproduce.reader import Table, is_table, read_table
from kdx.runs.reader import Damaged

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """A file that could not be read, and the reason."""

    path: Path
    reason: str


@dataclass
class Found:
    """The content of an outputs folder; `unfinished` are the folders of runs and sweeps without a result."""

    outputs: Path
    tables: list[Table] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    unfinished: list[Path] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show, not even a damaged file."""
        return not (self.tables or self.sweeps or self.runs or self.damages)

    def read(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """The result of `read` in a list; an empty list, and an entry in `damages`, if it raises Damaged."""
        try:
            return [read(*args, **kwargs)]
        except Damaged as damaged:
            self.damages.append(Damage(damaged.path, str(damaged)))
            return []


def read_outputs(outputs: Path) -> Found:
    """Read everything in the folder `outputs`."""
    found = Found(outputs)
    paper = outputs / "paper"
    for folder in sorted({file.parent for file in paper.glob("*/*/*")}):
        name = folder.relative_to(paper).as_posix()
        if is_table(folder):
            found.tables += found.read(read_table, name, folder)
    for folder in sorted(path for path in outputs.glob("sweeps/[!.]*") if path.is_dir()):
        if (folder / SUMMARY).exists():
            found.sweeps += found.read(read_sweep, folder)
        else:
            found.unfinished.append(folder)
    finished, unfinished = run_folders(outputs)
    found.unfinished += unfinished
    runs = [run for folder in finished for run in found.read(read_run, folder, outputs)]
    found.runs, found.uses = catalogue(runs, found.tables)
    _add_commands(found)
    return found


def _add_commands(found: Found) -> None:
    """Give the runs that belong to no table the commands that make them."""
    alone = [run for run in found.runs.values() if not (run.command or run.is_teacher)]
    if alone:
        # Imported here, because it takes a second that is needed only for runs without a table.
        from kdx.report.command_line import command_of

        found.runs |= {run.anchor: replace(run, command=command_of(run.settings, run.id)) for run in alone}
