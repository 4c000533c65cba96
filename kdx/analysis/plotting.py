"""Common style of all figures: size, font, colours; the same figures give the same files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from kdx.storage.files import write_atomically

# Inches: the column of a two-column paper, in the size at which it is printed.
WIDTH, HEIGHT = 3.5, 2.6
STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "figure.titlesize": 7.5,
    "figure.labelsize": 7.5,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    # The same figures give the same file.
    "svg.hashsalt": "kdx",
}
MARKERS = "osD^vP*X"


def save(canvas: Canvas, stem: Path) -> list[Path]:
    """Write `stem`.svg and .png atomically, without dates; return both paths."""
    paths = []
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        write_atomically(
            paths[-1],
            lambda path, suffix=suffix, metadata=metadata: canvas.savefig(path, format=suffix, metadata=metadata),
        )
    return paths


def canvas_of(
    rows: int = 1, columns: int = 1, *, height_ratios: Sequence[float] | None = None, **options: Any
) -> tuple[Canvas, list[Axes]]:
    """A figure with a grid of panels, and its panels as one list."""
    canvas = Canvas(layout="constrained", **options)
    return canvas, list(canvas.subplots(rows, columns, squeeze=False, height_ratios=height_ratios).flat)


def label_logarithmic(axis: Axis) -> None:
    """Label 1, 2, 5, 10, ... on a logarithmic axis, as 2,000 rather than 2 x 10^3, without minor labels."""
    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())
