"""The figures of the papers, drawn with matplotlib as SVG and PNG for a paper's column."""

from collections.abc import Sequence
from math import nan
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter

from kdx.analysis.palette import COLOURS, GREY, INK
from kdx.analysis.plotting import HEIGHT, MARKERS, STYLE, WIDTH, canvas_of, label_logarithmic, save
from kdx.reproduce.cells import Cell
from kdx.reproduce.figures import Bars, Lines, Weights
from kdx.reproduce.histograms import Histograms, drawn, histograms_of, read_histograms, write_histograms
from kdx.reproduce.jobs import JobResult, Request
from kdx.reproduce.published import Published, select
from kdx.reproduce.tables import PaperTable


def draw(folder: Path, table: PaperTable, order: Request, done: Sequence[JobResult], cells: Sequence[Cell]) -> None:
    """Write figure.svg and figure.png of a table that is a figure, and weights.csv if it shows weight histograms."""
    histograms: Histograms = {}
    if isinstance(table.figure, Weights):
        histograms = histograms_of(done, read_histograms(folder))
        write_histograms(folder, histograms)
    with mpl.rc_context(STYLE):
        save(picture(table, order, done, cells, histograms), folder / "figure")


def picture(
    table: PaperTable, order: Request, done: Sequence[JobResult], cells: Sequence[Cell], histograms: Histograms
) -> Canvas:
    """The figure of a table, marked if its runs are not the paper's; raises ValueError for a table without one."""
    match table.figure:
        case Lines() as lines:
            canvas = _lines(table, lines, cells)
        case Bars() as bars:
            canvas = _bars(table, bars, cells)
        case Weights():
            canvas = _weights(done, histograms)
        case None:
            raise ValueError(f"{table.name} is no figure")
    # Marked, so that it is not taken for a result.
    if order.budget != "paper":
        canvas.suptitle(f"budget={order.budget}: not a result", color="#b00020")
    elif order.changes:
        canvas.suptitle("other settings than the table's", color="#b00020")
    return canvas


def _lines(table: PaperTable, lines: Lines, cells: Sequence[Cell]) -> Canvas:
    canvas, (axes,) = canvas_of(figsize=(WIDTH, HEIGHT))
    shown = {cell.row: cell for cell in cells if cell.column == lines.y}
    levels = [label for label, row in table.rows.items() if row.x is None]
    series = dict.fromkeys(row.series for row in table.rows.values() if row.x is not None)
    for number, name in enumerate(series):
        rows = [(row.x, shown[label]) for label, row in table.rows.items() if row.x is not None and row.series == name]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        if any(cell.ours for _, cell in rows):
            # A missing value interrupts the line.
            places = [x for x, _ in rows]
            means = [nan if cell.ours is None else cell.ours.mean for _, cell in rows]
            errors = [0.0 if cell.ours is None else cell.ours.half_width or 0.0 for _, cell in rows]
            # When the colours repeat, the marks are white.
            fill = colour if number < len(COLOURS) else "white"
            axes.plot(places, means, color=colour, marker=marker, markerfacecolor=fill, label=name)
            axes.errorbar(places, means, errors, fmt="none", color=colour, capsize=1.5, elinewidth=0.6)
            for x, cell in rows:
                if cell.ours is not None and cell.lacking:
                    axes.annotate(cell.counted, (x, cell.ours.mean), color=colour, fontsize=6, va="bottom")
        printed = [(x, float(cell.published)) for x, cell in rows if cell.published is not None]
        if printed:
            axes.plot(
                *zip(*printed, strict=True), "--", color=colour, marker=marker, mfc="none", label=f"{name}, paper"
            )
    if not any(cell.ours for cell in shown.values()):
        axes.text(0.02, 0.02, "ours: not run", transform=axes.transAxes)
    for number, label in enumerate(levels, len(series)):
        colour = COLOURS[number % len(COLOURS)]
        _level(axes, shown[label], label, colour)
    axes.set(xlabel=lines.x, ylabel=table.columns[lines.y].title)
    if "x" in lines.log:
        ticks = sorted({row.x for row in table.rows.values() if row.x is not None})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick / 1000:g}k" if tick >= 1000 else f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    if "y" in lines.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend()
    return canvas


def _level(axes: Axes, cell: Cell, label: str, colour: str) -> None:
    if cell.ours is not None:
        axes.axhline(cell.ours.mean, color=colour, linewidth=0.8, label=label + cell.counted)
        if cell.ours.low is not None and cell.ours.high is not None:
            axes.axhspan(cell.ours.low, cell.ours.high, color=colour, alpha=0.12, linewidth=0)
    if cell.published is not None:
        axes.axhline(float(cell.published), color=colour, linewidth=0.8, linestyle="--", label=f"{label}, paper")


def _bars(table: PaperTable, bars: Bars, cells: Sequence[Cell]) -> Canvas:
    by_place = {(cell.row, cell.column): cell for cell in cells}
    panels: dict[str | None, list[str]] = {}
    for label, row in table.rows.items():
        panels.setdefault(row.series, []).append(label)
    told = {
        panel: any(by_place[label, column].ours for label in labels for column in bars.y)
        for panel, labels in panels.items()
    }
    # Without any run, one line says so.
    heights = [0.45 + 0.17 * len(labels) * len(bars.y) if told[panel] else 0.25 for panel, labels in panels.items()]
    canvas, all_axes = canvas_of(len(panels), figsize=(WIDTH, sum(heights) + 0.3), height_ratios=heights)
    for axes, (panel, labels) in zip(all_axes, panels.items(), strict=True):
        axes.set_title((panel or "") + ("" if told[panel] else ": not run"), loc="left")
        if not told[panel]:
            axes.set_axis_off()
            continue
        for number, column in enumerate(bars.y):
            _row_of_bars(axes, [by_place[label, column] for label in labels], number, table, bars)
        axes.set_yticks(range(len(labels)), [label.removeprefix(f"{panel}, ") for label in labels])
        axes.invert_yaxis()
        if bars.log:
            axes.set_xscale("log")
            label_logarithmic(axes.xaxis)
            axes.axvline(1, color=INK, linewidth=0.6)
            # Room for the numbers at the ends of the bars.
            low, high = axes.get_xlim()
            axes.set_xlim(low / 2, high * 1.6)
        _published_levels(axes, sorted(_printed_level(table, level) for level in bars.levels.get(panel or "", ())))
    all_axes[-1].set_xlabel(bars.x or (table.columns[bars.y[0]].title if len(bars.y) == 1 else ""))
    if len(bars.y) > 1:
        # Beside the bars, which may be anywhere.
        first = next((axes for axes, shown in zip(all_axes, told.values(), strict=True) if shown), all_axes[0])
        handles, titles = first.get_legend_handles_labels()
        canvas.legend(handles, titles, loc="outside upper center", ncols=2)
    return canvas


def _printed_level(table: PaperTable, level: str) -> float:
    """A published quantity, or the ratio of two."""
    numbers = [select(table.published, Published(), {"quantity": name.strip()}) for name in level.split("/")]
    values = [float(number) for number in numbers if number is not None]
    assert len(values) == len(numbers), "a level that is declared is printed"
    return values[0] / values[1] if len(values) == 2 else values[0]


def _published_levels(axes: Axes, levels: Sequence[float]) -> None:
    for value in levels:
        axes.axvline(value, color=GREY, linestyle="--", linewidth=0.8)
        # A single one on the side with more room, the lower one of two to its left.
        room = value < axes.get_xlim()[1] / 2 if len(levels) == 1 else value != levels[0]
        side = "left" if room else "right"
        axes.annotate(f" paper {value:.4g} ", (value, -0.6), color=GREY, fontsize=6, ha=side, va="center")


def _row_of_bars(axes: Axes, cells: Sequence[Cell], number: int, table: PaperTable, bars: Bars) -> None:
    """The bars of one column, with the value at the end of each; a diamond is the published value."""
    height, begin = 0.8 / len(bars.y), 1.0 if bars.log else 0.0
    places = np.arange(len(cells)) + (number - (len(bars.y) - 1) / 2) * height
    means = [cell.ours.mean if cell.ours else begin for cell in cells]
    errors = [(cell.ours.half_width or 0.0) if cell.ours else 0.0 for cell in cells]
    axes.barh(
        places,
        [mean - begin for mean in means],
        height,
        left=begin,
        xerr=errors,
        color=COLOURS[number],
        error_kw={"elinewidth": 0.6},
        label=table.columns[cells[0].column].title,
    )
    for place, cell, mean, error in zip(places, cells, means, errors, strict=True):
        text = f" {mean:.3g}x{cell.counted} " if cell.ours else " missing "
        end, side = (mean - error, "right") if mean < begin else (mean + error, "left")
        axes.annotate(text, (end, place), va="center", ha=side, fontsize=6)
        if cell.published is not None:
            axes.plot(float(cell.published), place, "D", color=GREY, markersize=3)


def _weights(done: Sequence[JobResult], histograms: Histograms) -> Canvas:
    rows = drawn(done)
    columns = min(len(rows), 2)
    canvas, panels = canvas_of(-(-len(rows) // columns), columns, figsize=(WIDTH, 1.25 * -(-len(rows) // columns)))
    limit = max((each.edges[-1] for each in histograms.values()), default=1.0)
    highest = max((max(each.counts) for each in histograms.values()), default=1)
    for axes, each in zip(panels, rows, strict=False):
        axes.set_title(each.job.row)
        axes.set(yscale="log", ylim=(0.8, 3 * highest), xlim=(-limit, limit))
        histogram = histograms.get((each.job.row, each.job.run))
        if histogram is None:
            axes.text(0.5, 0.5, each.status, transform=axes.transAxes, ha="center")
            continue
        axes.stairs(histogram.counts, histogram.edges, fill=True, color=COLOURS[0])
        share = 100 * histogram.zeros / sum(histogram.counts)
        axes.text(0.98, 0.95, f"zero: {share:.1f} %", transform=axes.transAxes, ha="right", va="top", fontsize=6)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    canvas.supxlabel("weight")
    canvas.supylabel("number of weights")
    return canvas
