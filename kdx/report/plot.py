"""`kdx plot`: the trade-off between error and compression, for a data set's finished runs and published networks."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from string import ascii_letters
from typing import TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from kdx.analysis.differences import setting_text
from kdx.analysis.palette import COLOURS, GREY, INK
from kdx.analysis.plotting import MARKERS, STYLE, WIDTH, canvas_of, label_logarithmic, save
from kdx.analysis.statistics import Estimate
from kdx.analysis.summary import Content, Group, grouped, read_run
from kdx.errors import UserError, unknown
from kdx.reproduce.reuse import recorded_runs
from kdx.reproduce.tables import Row, load_table, table_names
from kdx.runs.reader import finished_runs
from kdx.storage.files import write_csv

log = logging.getLogger(__name__)


T = TypeVar("T")
Place = tuple[float, float]

RATIOS = ("R_s", "R_c", "memory_compression", "C", "multiplications_ratio")
HEIGHT, SMALL = 4.0, 5.5
LETTERS = ascii_letters
# Networks trained on fewer examples are not comparable with the published ones.
WHOLE = {"dataset.train_size": "null"}
# The axis labels of figures; others have their key.
TITLES = {
    "R_s": "R_s = weights / nonzero weights",
    "R_c": "R_c = teacher's parameters / student's",
    "memory_compression": "memory compression = teacher's dense bytes / student's in CSR",
    "test_error_percent": "test error %",
    "val_error_percent": "validation error %",
}
# Points between letters that would cover each other.
APART = 6.0


@dataclass(frozen=True)
class Point:
    """One mark: an experiment with its estimates over seeds, or a published network, whose `source` is a paper's table.

    A published network's `student` is its name in the paper, and it has no method.
    """

    student: str
    method: str
    source: str
    x: Estimate
    y: Estimate


def trade_off(points: Sequence[Point], out: Path, x: str, y: str) -> list[Path]:
    """Draw figure `y` over figure `x` for these points and list them in a table: `out` with .svg, .png and .csv."""
    with mpl.rc_context(STYLE):
        pictures = save(picture(points, x, y), out)
    csv = out.with_name(f"{out.name}.csv")
    write_csv(csv, list(_row(points[0], x, y)), [_row(point, x, y) for point in points])
    return [*pictures, csv]


def experiments(
    dataset: str,
    outputs: Path,
    x: str = "R_s",
    y: str = "test_error_percent",
    where: Mapping[str, str] | None = None,
    *,
    recorded: bool = False,
) -> list[Point]:
    """Figures `x` and `y` (keys of metrics.json) of all experiments on a data set whose runs are finished.

    `where` has patterns (* and ?, separated by commas) for `student`, `method` and any setting; only runs that match
    all of them are included, and none on a part of the training set unless `dataset.train_size` is given. With
    `recorded`, runs that only a reproduced table records are included. Raises UserError if there is no such run, or
    none with both figures.
    """
    groups = _groups(dataset, _known(outputs, recorded=recorded), WHOLE | dict(where or {}))
    known = {key for group in groups for figures in group.figures for key in figures if _is_number(figures[key])}
    for key, value in (("x", x), ("y", y)):
        if value not in known:
            raise unknown(key, value, sorted(known))
    ours = [point for group in groups if (point := _point(group, x, y)) is not None]
    if not ours:
        raise UserError(f"x: no finished run of {dataset} has both {x} and {y}")
    return ours


def published(dataset: str, x: str, y: str) -> list[Point]:
    """The networks of the papers' tables on this data set for which both figures are printed."""
    found: dict[tuple[str, str, str], Point] = {}
    for name in table_names():
        table = load_table(name)
        if f"dataset={dataset}" not in table.dataset or not {x, y} <= table.columns.keys():
            continue
        for label, row in table.rows.items():
            places = table.printed(label, x), table.printed(label, y)
            identity = (table.published, str(sorted(row.published.items())), str(sorted(row.instead.items())))
            if places[0] is None or places[1] is None or identity in found:
                continue
            numbers = [float(place) for place in places if place is not None]
            if x in RATIOS and numbers[0] < 1:
                log.info("%s, %s: the printed %s of %s is impossible and left out", name, label, x, numbers[0])
                continue
            point = Point(_printed_name(row, label), "", name, *(Estimate((number,)) for number in numbers))
            # A teacher is in several tables, but should be drawn once.
            if not any(replace(other, source=name) == point for other in found.values()):
                found[identity] = point
    return list(found.values())


def picture(points: Sequence[Point], x: str, y: str) -> Canvas:
    """A colour per method, a marker per student, and the 95 % intervals over seeds; published networks are letters.

    When the colours repeat, marks are filled in white.
    """
    canvas, (axes,) = canvas_of(figsize=(2 * WIDTH, HEIGHT))
    ours, theirs = [[point for point in points if bool(point.source) is paper] for paper in (False, True)]
    methods = list(dict.fromkeys(point.method for point in ours))
    students = list(dict.fromkeys(point.student for point in ours))
    styles: dict[str, tuple[str, str]] = {}
    for number, method in enumerate(methods):
        colour = COLOURS[number % len(COLOURS)]
        styles[method] = colour, colour if number < len(COLOURS) else "white"
    markers = {student: MARKERS[number % len(MARKERS)] for number, student in enumerate(students)}
    for point in ours:
        axes.errorbar(
            point.x.mean,
            point.y.mean,
            point.y.half_width,
            point.x.half_width,
            fmt=markers[point.student],
            elinewidth=0.5,
            color=styles[point.method][0],
            markerfacecolor=styles[point.method][1],
        )
    axes.update_datalim([(point.x.mean, point.y.mean) for point in theirs])
    axes.autoscale_view()
    if x in RATIOS:
        axes.set_xscale("log")
        label_logarithmic(axes.xaxis)
    places, marks = [[(point.x.mean, point.y.mean) for point in points] for points in (theirs, ours)]
    for letter, place, beside in zip(LETTERS, places, _apart(canvas, axes, places, marks), strict=False):
        axes.annotate(
            letter,
            place,
            (beside, 0),
            textcoords="offset points",
            color=GREY,
            ha="center",
            va="center",
            weight="bold",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "shrinkB": 0} if beside else None,
        )
    axes.set(xlabel=TITLES.get(x, x), ylabel=TITLES.get(y, y))
    axes.grid(alpha=0.25, linewidth=0.4)
    entries = [_entry(method, "o", *styles[method]) for method in methods]
    entries += [_entry(student, markers[student], INK, INK) for student in students]
    canvas.legend(handles=entries, loc="outside right upper", fontsize=SMALL)
    if theirs:
        letters = zip(LETTERS, theirs, strict=False)
        names = [_entry(f"{letter}: {point.student} ({point.source})", "", GREY, GREY) for letter, point in letters]
        canvas.legend(
            handles=names, loc="outside lower center", ncols=3, fontsize=SMALL, handlelength=0, handletextpad=0
        )
    return canvas


def _apart(canvas: Canvas, axes: Axes, places: Sequence[Place], marks: Sequence[Place]) -> list[float]:
    """The offset of each letter to the right, in points, so that it covers no mark and no earlier letter."""

    def on_paper(place: Place) -> Place:
        across, up = axes.transData.transform(place) * 72 / canvas.dpi
        return across, up

    taken = [on_paper(mark) for mark in marks]
    beside = []
    for across, up in map(on_paper, places):
        moved = across
        while any(abs(moved - other) < APART and abs(up - height) < APART for other, height in taken):
            moved += APART / 2
        taken.append((moved, up))
        beside.append(moved - across)
    return beside


def _entry(label: str, marker: str, colour: str, fill: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, markerfacecolor=fill, label=label)


@dataclass(frozen=True)
class Known:
    """A finished run, whether its files have been read or not."""

    dataset: str
    student: str
    method: str
    run: str
    content: Path | Content

    def read(self) -> Content:
        """Its settings and figures; raises UserError if a file is damaged."""
        return read_run(self.content) if isinstance(self.content, Path) else self.content


def _known(outputs: Path, *, recorded: bool) -> list[Known]:
    # A folder is runs/<dataset>/<student>/<method>/<run id>.
    known = [Known(*path.parts[-4:], content=path) for path in finished_runs(outputs)]
    if recorded:
        here = {each.run for each in known}
        told = {run: content for run, content in recorded_runs(outputs).items() if run not in here}
        known += [
            Known(figures["dataset"], figures["student"], figures["method"], run, (settings, figures))
            for run, (settings, figures) in told.items()
        ]
    if not known:
        raise UserError(f"plot: {outputs / 'runs'} holds no finished run; kdx train makes one")
    # Sorted, so that the same runs have the same colours, wherever they are recorded.
    return sorted(known, key=lambda each: (each.dataset, each.student, each.method, each.run))


def _groups(dataset: str, known: Sequence[Known], where: Mapping[str, str]) -> list[Group]:
    """The experiments on a data set that match all patterns, each with its runs."""
    chosen = [run for run in known if run.dataset == dataset]
    if not chosen:
        raise unknown("plot", dataset, sorted({run.dataset for run in known}))
    # These two first, since they are in the folder's name, and other runs' files need not be read.
    chosen = _chosen(chosen, "student", where.get("student", "*"), lambda run: run.student)
    chosen = _chosen(chosen, "method", where.get("method", "*"), lambda run: run.method)
    groups = grouped([run.read() for run in chosen])
    keys = sorted({key for group in groups for key in group.settings}.union(WHOLE))
    for key in (key for key in where if "." in key):
        if key not in keys:
            raise unknown("key", key, keys)
        groups = _chosen(groups, key, where[key], lambda group, key=key: setting_text(group.settings.get(key)))
    return groups


def _chosen(things: list[T], key: str, patterns: str, text: Callable[[T], str]) -> list[T]:
    """The items whose text matches; raises UserError, with all texts, if none does."""
    texts = [text(thing) for thing in things]
    found = [thing for thing, each in zip(things, texts, strict=True) if _matches(each, patterns)]
    if not found:
        raise unknown(key, patterns, sorted(set(texts)))
    return found


def _matches(name: str, patterns: str) -> bool:
    # A list of widths is written with commas itself.
    return name == patterns or any(fnmatchcase(name, pattern) for pattern in patterns.split(","))


def _point(group: Group, x: str, y: str) -> Point | None:
    right, up = group.estimate(x), group.estimate(y)
    if right is None or up is None or (x in RATIOS and right.mean <= 0):
        return None
    first = group.figures[0]
    return Point(str(first["student"]), str(first["method"]), "", right, up)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _printed_name(row: Row, label: str) -> str:
    """The paper's name of a row's network without footnotes; the row's label if it has no name."""
    return row.published.get("network", label).rstrip("*")


def _row(point: Point, x: str, y: str) -> dict[str, object]:
    return {
        "student": point.student,
        "method": point.method,
        "published_in": point.source,
        "seeds": "" if point.source else point.x.n,
        x: point.x.mean,
        f"{x}_interval95": point.x.half_width,
        y: point.y.mean,
        f"{y}_interval95": point.y.half_width,
    }
