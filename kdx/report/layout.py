"""The layout of tables: figures as text, and a console that never truncates a number."""

from typing import IO

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

WIDTH = 80
ABSENT = "-"
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


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return ABSENT if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A percentage with two decimals, without the sign."""
    return ABSENT if value is None else f"{value:.2f}"


def sparsity(weights: float, nonzero: float) -> str:
    """The percentage of zeros, never rounded to 100 or 0 unless it is exactly that."""
    zero = 100 * (weights - nonzero) / weights if weights else 0.0
    if nonzero and f"{zero:.2f}" == "100.00":
        return ">99.99"
    if nonzero < weights and f"{zero:.2f}" == "0.00":
        return "<0.01"
    return f"{zero:.2f}"


def ratio(value: float | None) -> str:
    """A ratio such as 8.98x, with two decimals below 100 and none from 1,000 on."""
    if value is None:
        return ABSENT
    decimals = 2 if value < 99.995 else 1 if value < 999.95 else 0
    return f"{value:,.{decimals}f}x"


def size(value: float | None) -> str:
    """Bytes, in kB (1,000 bytes) or MB (1,000,000 bytes) if that is shorter."""
    if value is None:
        return ABSENT
    if value < 1_000:
        return f"{value:,.0f} B"
    # 999,995 would read 1,000.00 kB.
    return f"{value / 1e3:,.2f} kB" if value < 999_995 else f"{value / 1e6:,.2f} MB"


def milliseconds(value: float | None) -> str:
    """Milliseconds with at least three significant digits from 1 microsecond on."""
    if value is None:
        return ABSENT
    return f"{value:.4f}" if value < 1 else f"{value:,.2f}"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and hours if it is long."""
    if seconds is None:
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
