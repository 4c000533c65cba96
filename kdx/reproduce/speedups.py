"""The speedup of students over their teachers, from side-by-side timings of `kdx bench`."""

from pathlib import Path

from kdx.bench.results import read_inference
from kdx.bench.timing import DEPLOY, TORCH, bench, write_bench
from kdx.reproduce.jobs import Budget

# For each runtime, batch and number of threads.
SECONDS: dict[Budget, float] = {"paper": 0.2, "short": 0.2, "smoke": 0.002}
RUNTIMES = {"masked": TORCH, "dense": TORCH, "shrunk": TORCH, "CSR": DEPLOY}


def speedups(run: Path, *, time: bool, budget: Budget) -> dict[str, float]:
    """`speedup.FORM`: the dense teacher's time over the student's, for one image on one thread; timed first if `time`.

    The teacher runs in torch, and so does the student, except CSR in kdx.deploy. Ratios that were too noisy are left
    out, and timed again if `time`.
    """
    found = _told(run)
    if time and (found is None or None in found.values()):
        write_bench(bench(run, SECONDS[budget]))
        found = _told(run)
    return {key: ratio for key, ratio in (found or {}).items() if ratio is not None}


def _told(run: Path) -> dict[str, float | None] | None:
    """The speedups recorded for the run, None for those that were too noisy; None if nothing is recorded."""
    measured = read_inference(run)
    rows = {
        (row.name, row.runtime): row
        for row in (measured.timings if measured else [])
        if (row.batch, row.threads) == (1, 1)
    }
    shown = {form: rows[form, runtime] for form, runtime in RUNTIMES.items() if (form, runtime) in rows}
    if not shown:
        return None
    if any(row.against_teacher_low is not None for row in shown.values()):
        return {f"speedup.{form.lower()}": row.against_teacher for form, row in shown.items()}
    # Earlier versions of kdx compared the medians over all rounds.
    teacher = rows["teacher", TORCH].median_us
    return {f"speedup.{form.lower()}": teacher / row.median_us for form, row in shown.items()}
