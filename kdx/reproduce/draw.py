"""Figures with matplotlib, as SVG and PNG, legible in a paper's column."""

from collections.abc import Sequence
from math import nan
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter

from kdx.report.drawing import HEIGHT, MARKERS, STYLE, WIDTH, canvas_of, save
from kdx.report.palette import COLOURS, GREY
from kdx.reproduce.cells import Cell
from kdx.reproduce.jobs import Done, Order
from kdx.reproduce.pictures import Bars, Lines, Weights
from kdx.reproduce.published import Published, select
from kdx.reproduce.tables import PaperTable
from kdx.tensors import load_tensors

# Odd, so that exact zeros have the bin in the middle to themselves and their closest neighbours.
BINS = 101


def draw(folder: Path, table: PaperTable, order: Order, done: Sequence[Done], cells: Sequence[Cell]) -> None:
    """Write figure.svg and figure.png of a table that is a figure."""
    with mpl.rc_context(STYLE):
        save(picture(table, order, done, cells), folder / "figure")


def picture(table: PaperTable, order: Order, done: Sequence[Done], cells: Sequence[Cell]) -> Canvas:
    """The figure of a table that is one, marked where its runs are not the paper's; ValueError for another table."""
    match table.figure:
        case Lines() as lines:
            canvas = _lines(table, lines, cells)
        case Bars() as bars:
            canvas = _bars(table, bars, cells)
        case Weights():
            canvas = _weights(done)
        case None:
            raise ValueError(f"{table.name} is no figure")
    # Nobody shall take such a picture for a result.
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
            # What is missing interrupts the line.
            places = [x for x, _ in rows]
            means = [nan if cell.ours is None else cell.ours.mean for _, cell in rows]
            errors = [0.0 if cell.ours is None else cell.ours.half_width or 0.0 for _, cell in rows]
            # The colours repeat after a while; then the marks are white.
            fill = colour if number < len(COLOURS) else "white"
            axes.plot(places, means, color=colour, marker=marker, markerfacecolor=fill, label=name)
            axes.errorbar(places, means, errors, fmt="none", color=colour, capsize=1.5, elinewidth=0.6)
        printed = [(x, float(cell.published)) for x, cell in rows if cell.published is not None]
        if printed:
            axes.plot(
                *zip(*printed, strict=True), "--", color=colour, marker=marker, mfc="none", label=f"{name}, paper"
            )
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
        axes.axhline(cell.ours.mean, color=colour, linewidth=0.8, label=label)
        if cell.ours.low is not None and cell.ours.high is not None:
            axes.axhspan(cell.ours.low, cell.ours.high, color=colour, alpha=0.12, linewidth=0)
    if cell.published is not None:
        axes.axhline(float(cell.published), color=colour, linewidth=0.8, linestyle="--", label=f"{label}, paper")


def _bars(table: PaperTable, bars: Bars, cells: Sequence[Cell]) -> Canvas:
    panels = list(dict.fromkeys(row.series for row in table.rows.values()))
    longest = max(sum(row.series == panel for row in table.rows.values()) for panel in panels)
    canvas, all_axes = canvas_of(len(panels), figsize=(WIDTH, len(panels) * (0.55 + 0.17 * longest * len(bars.y))))
    by_place = {(cell.row, cell.column): cell for cell in cells}
    for axes, panel in zip(all_axes, panels, strict=True):
        labels = [label for label, row in table.rows.items() if row.series == panel]
        for number, column in enumerate(bars.y):
            _row_of_bars(axes, [by_place[label, column] for label in labels], number, len(bars.y), table)
        if panel in bars.levels:
            printed = select(table.published, Published(), {"quantity": bars.levels[panel]})
            assert printed is not None, "a level that is declared is printed"
            axes.axvline(float(printed), color=GREY, linestyle="--", linewidth=0.8)
            # On the side with more room.
            side = "left" if float(printed) < axes.get_xlim()[1] / 2 else "right"
            place = float(printed), -0.6
            axes.annotate(f" paper's best {printed} ", place, color=GREY, fontsize=6, ha=side, va="center")
        axes.set_yticks(range(len(labels)), [label.removeprefix(f"{panel}, ") for label in labels])
        axes.invert_yaxis()
        axes.set_title(panel or "", loc="left")
        if not any(by_place[label, column].ours for label in labels for column in bars.y):
            # Nothing to measure: an axis around zero would be noise.
            axes.set(xlim=(0, 1), xticks=[])
    if len(bars.y) > 1:
        # Beside the bars, which may be anywhere.
        handles, titles = all_axes[0].get_legend_handles_labels()
        canvas.legend(handles, titles, loc="outside upper center", ncols=len(bars.y))
    all_axes[-1].set_xlabel(table.columns[bars.y[0]].title if len(bars.y) == 1 else "")
    return canvas


def _row_of_bars(axes: Axes, cells: Sequence[Cell], number: int, of: int, table: PaperTable) -> None:
    """The bars of one column, with the value at each end; a diamond marks the published one."""
    height = 0.8 / of
    places = np.arange(len(cells)) + (number - (of - 1) / 2) * height
    means = [cell.ours.mean if cell.ours else 0.0 for cell in cells]
    errors = [(cell.ours.half_width or 0.0) if cell.ours else 0.0 for cell in cells]
    axes.barh(
        places,
        means,
        height,
        xerr=errors,
        color=COLOURS[number],
        error_kw={"elinewidth": 0.6},
        label=table.columns[cells[0].column].title,
    )
    for place, cell, mean, error in zip(places, cells, means, errors, strict=True):
        text = f" {mean:.3g}x" if cell.ours else " missing"
        axes.annotate(text, (mean + error, place), va="center", fontsize=6)
        if cell.published is not None:
            axes.plot(float(cell.published), place, "D", color=GREY, markersize=3)


def _weights(done: Sequence[Done]) -> Canvas:
    first = {each.job.row: each for each in reversed(done)}
    rows = [each for each in done if first[each.job.row] is each]
    columns = min(len(rows), 2)
    canvas, panels = canvas_of(-(-len(rows) // columns), columns, figsize=(WIDTH, 1.25 * -(-len(rows) // columns)))
    found = [_matrices(each) if each.status == "finished" else None for each in rows]
    limit = max((float(np.abs(weights).max()) for weights in found if weights is not None), default=1.0)
    bins = np.linspace(-limit, limit, BINS + 1)
    highest = 1.0
    for axes, each, weights in zip(panels, rows, found, strict=False):
        axes.set_title(each.job.row)
        if weights is None:
            axes.text(0.5, 0.5, each.status, transform=axes.transAxes, ha="center")
            continue
        counts, _, _ = axes.hist(weights, bins.tolist(), color=COLOURS[0])
        highest = max(highest, float(np.max(counts)))
        share = 100 * float(np.mean(weights == 0))
        axes.text(0.98, 0.95, f"zero: {share:.1f} %", transform=axes.transAxes, ha="right", va="top", fontsize=6)
    for axes in panels[: len(rows)]:
        axes.set(yscale="log", ylim=(0.8, 3 * highest), xlim=(-limit, limit))
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    canvas.supxlabel("weight")
    canvas.supylabel("number of weights")
    return canvas


def _matrices(done: Done) -> np.ndarray:
    """All weights (number,) of a finished row's network: matrices and filters, without biases."""
    file = "teacher.safetensors" if done.job.of == "teacher" else "student.safetensors"
    tensors, _ = load_tensors(done.job.folder.path / file)
    return np.concatenate([tensor.numpy().ravel() for tensor in tensors.values() if tensor.ndim > 1])
