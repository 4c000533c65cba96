"""The layout of tables on a terminal, which never truncates a number."""

from typing import IO

from rich import box
from rich.console import Console
from rich.measure import Measurement
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
