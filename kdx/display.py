"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0


class Stage:
    """One piece of work with a known number of units; `advance` tells how many are done and the figures so far."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self._title, self._total, self._bar = title, total, bar
        self._task = bar.add_task(title, total=total, figures="") if bar else None
        self._last_line = time.monotonic()

    def advance(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """Show that `done` units are finished, with a few figures behind the bar."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in (figures or {}).items())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, figures=text)
        elif done == self._total or time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            print(f"{self._title}: {done}/{self._total}  {text}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def stage(title: str, total: int) -> Iterator[Stage]:
    """Open a stage of `total` units on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
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
