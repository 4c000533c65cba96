"""Pictures of `kdx bench` results: test error over file size, and over latency."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from kdx.analysis.palette import COLOURS, GREY
from kdx.bench.results import Timed
from kdx.report.overview import machine_text
from kdx.report.runs import Run

# One image on one thread: the case that every run is timed in.
BATCH, THREADS = 1, 1
TEACHER, ONNX = "teacher", "onnxruntime"
ERROR, TEACHER_ERROR = "test_error_percent", "teacher_test_error_percent"
MARKS = {TEACHER: "s", "dense": "o", "shrunk": "D", "CSR": "^", "auto": "v", "masked": "x"}
RUNS_SHOWN = len(COLOURS)


@dataclass(frozen=True)
class Picture:
    """Runs of one data set that were timed on one machine; `left_out` are those for which no colour is left."""

    dataset: str
    machine: str
    runs: list[Run]
    left_out: int
    svg: bytes


def pictures(runs: Iterable[Run]) -> list[Picture]:
    """One picture per data set and machine with timed runs."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        # Without such rows where other programs took the cores.
        if run.inference and _rows(run) and run.number(ERROR) is not None:
            key = (str(run.figures["dataset"]), machine_text(run.inference.machine))
            groups.setdefault(key, []).append(run)
    found = []
    for (dataset, machine), timed in sorted(groups.items()):
        best = sorted(timed, key=lambda run: run.number(ERROR) or 0.0)[:RUNS_SHOWN]
        found.append(Picture(dataset, machine, best, len(timed) - len(best), _drawn(best)))
    return found


def _drawn(runs: Sequence[Run]) -> bytes:
    # Imported here, because it takes a second that a page without timings does not need.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from kdx.analysis.plotting import label_logarithmic

    with rc_context({"svg.hashsalt": "kdx", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        by_size, by_time = figure.subplots(1, 2, sharey=True)
        for run, colour in zip(runs, COLOURS, strict=False):
            for row in _rows(run):
                error = run.number(TEACHER_ERROR if row.name == TEACHER else ERROR)
                if error is None:
                    continue
                ink = GREY if row.name == TEACHER else colour
                look: dict[str, Any] = {"color": ink, "marker": MARKS[row.name], "s": 36}
                if row.runtime == ONNX:
                    look["facecolors"] = "none"
                by_time.scatter(row.median_us, error, **look)
                by_time.hlines(error, row.p10_us, row.p90_us, color=ink, linewidth=1)
                if row.file_bytes:
                    by_size.scatter(row.file_bytes / 1e3, error, **look)
        by_size.set(xscale="log", xlabel="file, kB", ylabel="test error, %")
        by_time.set(xscale="log", xlabel="one image on one thread, µs (median, p10 to p90)")
        for axes in (by_size, by_time):
            axes.grid(alpha=0.25, linewidth=0.6)
            label_logarithmic(axes.xaxis)
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _rows(run: Run) -> list[Timed]:
    rows = run.inference.timings if run.inference else []
    return [row for row in rows if (row.batch, row.threads) == (BATCH, THREADS)]
