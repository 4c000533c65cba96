"""What a terminal shows: tables, which never truncate a number, and progress."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

WIDTH = 80
WARNING = "bold red"


def console(file: IO[str] | None = None) -> Console:
    """Standard output: as wide as the terminal but at least 80 columns; exactly 80, without colour, if piped."""
    screen = Console(file=file, highlight=False, markup=False, emoji=False)
    screen.width = max(WIDTH, screen.width) if screen.is_terminal else WIDTH
    return screen


def table(*columns: Column) -> Table:
    """An empty table with one rule under its header and two blanks between columns."""
    return Table(
        *columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold"
    )


def words(header: str) -> Column:
    """A column of text, which may be folded when the table is too wide."""
    return Column(header, overflow="fold")


def numbers(header: str) -> Column:
    """A right-aligned column that is never folded or cut."""
    return Column(header, justify="right", no_wrap=True)


def fits(screen: Console, content: Table) -> bool:
    """Whether `content` fits on the console without folding a cell."""
    return Measurement.get(screen, screen.options.update(width=10_000), content).maximum <= screen.width


def show(screen: Console, content: Table, title: str = "") -> None:
    """Print `title`, `content` and an empty line, on a wider console if the numbers need one."""
    if title:
        screen.print(Text(title, style="bold"))
    usual = screen.width
    screen.width = max(usual, Measurement.get(screen, screen.options.update(width=10_000), content).minimum)
    screen.print(content)
    screen.width = usual
    screen.print()


def warn(screen: Console, text: str) -> None:
    """Print a conspicuous warning."""
    screen.print(Text(f"WARNING: {text}", style=WARNING))


LINE_SECONDS = 10.0
QUIET = "KDX_PROGRESS"
"""Environment variable; a program that runs several trainings sets it to "none", to show their progress itself."""


class ProgressBar:
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
def progress_bar(title: str, total: int) -> Iterator[ProgressBar]:
    """Open a stage of `total` units on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get(QUIET) == "none":
        yield ProgressBar(title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield ProgressBar(title, total, bar)
