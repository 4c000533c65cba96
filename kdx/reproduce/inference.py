"""How much faster a student is than its teacher, from what `kdx bench` measures side by side."""

from pathlib import Path

from kdx.bench import DEPLOY, TORCH, bench, write_bench
from kdx.report.inference import read_inference
from kdx.reproduce.budget import Budget

# For each runtime, batch and number of threads.
SECONDS: dict[Budget, float] = {"paper": 0.2, "short": 0.2, "smoke": 0.002}
RUNTIMES = {"masked": TORCH, "dense": TORCH, "shrunk": TORCH, "CSR": DEPLOY}


def speedups(run: Path, *, time: bool, budget: Budget) -> dict[str, float]:
    """`speedup.FORM`: the dense teacher's time over the student's, one image on one thread; timed first where `time`.

    The teacher runs in torch, and so does the student but for CSR, which is kdx.deploy's.
    """
    measured = read_inference(run)
    if measured is None and time:
        write_bench(bench(run, SECONDS[budget]))
        measured = read_inference(run)
    if measured is None:
        return {}
    medians = {(row.name, row.runtime): row.median_us for row in measured.timings if (row.batch, row.threads) == (1, 1)}
    teacher = medians["teacher", TORCH]
    return {
        f"speedup.{form.lower()}": teacher / medians[form, runtime]
        for form, runtime in RUNTIMES.items()
        if (form, runtime) in medians
    }
