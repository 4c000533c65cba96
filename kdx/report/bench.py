"""The inference table of a run."""

from rich.console import Console
from rich.text import Text

from kdx.bench import DENSE, DEPLOY, TEACHERS, TORCH, Bench, Timing
from kdx.deploy import Choice
from kdx.report import layout
from kdx.report.table import SLOWER, against


def print_bench(bench: Bench) -> None:
    """Print how fast the networks of a run are, one table for each number of threads and batch, on standard output."""
    screen = layout.console()
    screen.print(Text(bench.title, style="bold").append(f"   run {bench.run.name}", style="not bold"))
    screen.print()
    for threads in sorted({timing.latency.threads for timing in bench.timings}):
        for batch in sorted({timing.latency.batch for timing in bench.timings}):
            chosen = [each for each in bench.timings if (each.latency.threads, each.latency.batch) == (threads, batch)]
            _print_timings(screen, chosen, threads, batch)
    for batch, choices in bench.choices.items():
        _print_choices(screen, choices, batch)
    screen.print("dense: zeros included; masked: they are found in every forward, as VS times it.")
    screen.print("shrunk, CSR, auto: without useless neurons; auto: each matrix the faster way.")
    screen.print("The teacher is that of the same runtime, for kdx.deploy that of torch.")
    screen.print("scipy always multiplies CSR on one thread.")
    for line in bench.left_out:
        layout.warn(screen, f"not timed: {line}")


def _print_timings(screen: Console, timings: list[Timing], threads: int, batch: int) -> None:
    medians = {timing.kind: timing.latency.median_ms for timing in timings}
    content = layout.table(
        layout.words("network"),
        layout.words("runtime"),
        *map(layout.numbers, ("median ms", "p10 - p90 ms")),
        layout.words("against dense"),
        layout.words("against teacher"),
    )
    for timing in timings:
        kind, row = timing.kind, timing.latency
        dense = DENSE[kind.runtime]
        teacher = TEACHERS.get(kind.runtime, TEACHERS[TORCH])
        is_student = kind != teacher
        content.add_row(
            kind.name,
            kind.runtime,
            layout.milliseconds(row.median_ms),
            f"{layout.milliseconds(row.p10_ms)} - {layout.milliseconds(row.p90_ms)}",
            against(medians.get(dense), row.median_ms) if is_student and kind != dense else "",
            against(medians.get(teacher), row.median_ms) if is_student else "",
        )
    plural = "" if threads == 1 else "s"
    layout.show(screen, content, f"Batch {layout.count(batch)}, {threads} CPU thread{plural}")


def _print_choices(screen: Console, choices: list[Choice], batch: int) -> None:
    content = layout.table(
        layout.words("matrix"),
        layout.words("shape"),
        *map(layout.numbers, ("sparsity %", "CSR ms", "dense ms", "CSR wins from %")),
        layout.words("auto"),
    )
    for choice in choices:
        crossover = "never" if choice.crossover is None else f"{100 * choice.crossover:.1f}"
        content.add_row(
            choice.name,
            "x".join(map(str, choice.shape)),
            f"{100 * choice.sparsity:.2f}",
            layout.milliseconds(choice.csr_ms),
            layout.milliseconds(choice.dense_ms),
            crossover,
            Text("CSR") if choice.runtime == "csr" else Text("dense, CSR loses", style=SLOWER),
        )
    layout.show(screen, content, f"CSR or dense in {DEPLOY}, batch {layout.count(batch)}, 1 CPU thread")
