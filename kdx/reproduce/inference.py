"""How much faster a student is than its teacher, from what `kdx bench` measures side by side."""

from pathlib import Path

from kdx.bench import bench, write_bench
from kdx.report.inference import read_inference
from kdx.reproduce.budget import Budget

# For each runtime, batch and number of threads.
SECONDS: dict[Budget, float] = {"paper": 0.2, "short": 0.2, "smoke": 0.002}
FORMS = ("masked", "dense", "shrunk", "CSR")


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
    rows = [row for row in measured.timings if (row.batch, row.threads) == (1, 1) and row.runtime != "onnxruntime"]
    medians = {row.name: row.median_us for row in rows}
    return {f"speedup.{form.lower()}": medians["teacher"] / medians[form] for form in FORMS if form in medians}
