"""Progress on stderr: a bar on a terminal, an occasional line elsewhere."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
QUIET = "KDX_PROGRESS"
"""Environment variable; a program that runs several trainings sets it to "none", to show their progress itself."""


class Stage:
    """Progress of one piece of work with a known number of units."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self._quiet = os.environ.get(QUIET) == "none"
        self._title, self._total, self._bar = title, total, bar
        self._task = bar.add_task(title, total=total, figures="") if bar else None
        self._last_line = self._began = time.monotonic()
        self._done_before: int | None = None

    def advance(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """Show that `done` units are finished, with some figures behind the bar."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in (figures or {}).items())
        if self._done_before is None:
            self._done_before, self._began = done, time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, figures=text)
        elif not self._quiet and (done == self._total or self._line_is_due()):
            self._last_line = time.monotonic()
            left = f", {left_text(seconds)} left" if (seconds := self._seconds_left(done)) else ""
            print(f"{self._title}: {done}/{self._total}{left}  {text}".rstrip(), file=sys.stderr, flush=True)

    def _line_is_due(self) -> bool:
        return time.monotonic() - self._last_line >= LINE_SECONDS

    def _seconds_left(self, done: int) -> float:
        """The estimated seconds that are left at the pace so far; 0 if unknown or none are left."""
        here = done - (self._done_before or 0)
        return (time.monotonic() - self._began) / here * (self._total - done) if here else 0.0


def left_text(seconds: float) -> str:
    """A duration in at most two units: 2 h 10 min, 3 min 5 s, 40 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def stage(title: str, total: int) -> Iterator[Stage]:
    """Open a stage of `total` units on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get(QUIET) == "none":
        yield Stage(title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Stage(title, total, bar)
