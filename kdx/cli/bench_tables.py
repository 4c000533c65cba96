"""The inference table of a run, from `kdx bench`."""

from rich.console import Console
from rich.text import Text

from kdx import console, formatting
from kdx.bench.timing import DEPLOY, Bench, VariantLatency
from kdx.cli.run_tables import COMPARED, NOISY, SLOWER, against
from kdx.deploy import Choice
from kdx.deploy.rounds import Speedup


def print_bench(bench: Bench) -> None:
    """Print a run's inference latencies on standard output, one table per number of threads and batch size."""
    screen = console.console()
    screen.print(Text(bench.title, style="bold").append(f"   run {bench.run.name}", style="not bold"))
    screen.print()
    for threads in sorted({timing.latency.threads for timing in bench.timings}):
        for batch in sorted({timing.latency.batch for timing in bench.timings}):
            chosen = [each for each in bench.timings if (each.latency.threads, each.latency.batch) == (threads, batch)]
            _print_timings(screen, chosen, threads, batch, crowded=(threads, batch) in bench.crowded)
            _warn_of_crowd(screen, bench, threads, batch)
    for batch, choices in bench.choices.items():
        _print_choices(screen, choices, batch)
        _warn_of_crowd(screen, bench, 1, batch)
    screen.print("dense: zeros included; masked: they are found in every forward, as VS times it.")
    screen.print("shrunk, CSR, auto: without useless neurons; auto: each matrix the faster way.")
    screen.print("The teacher is that of the same runtime, for kdx.deploy that of torch.")
    screen.print(COMPARED)
    screen.print("scipy always multiplies CSR on one thread.")
    for line in bench.left_out:
        console.warn(screen, f"not timed: {line}")
    if not bench.results:
        console.warn(screen, "everything is too noisy, so that nothing is written")


def _print_timings(screen: Console, timings: list[VariantLatency], threads: int, batch: int, *, crowded: bool) -> None:
    content = console.table(
        console.words("network"),
        console.words("runtime"),
        *map(console.numbers, ("median ms", "p10 - p90 ms")),
        console.words("against dense"),
        console.words("against teacher"),
    )
    for timing in timings:
        kind, row = timing.kind, timing.latency
        content.add_row(
            kind.name,
            kind.runtime,
            formatting.milliseconds(row.median_ms),
            f"{formatting.milliseconds(row.p10_ms)} - {formatting.milliseconds(row.p90_ms)}",
            *(_against(each, crowded=crowded) for each in (timing.dense, timing.teacher)),
        )
    plural = "" if threads == 1 else "s"
    console.show(screen, content, f"Batch {formatting.count(batch)}, {threads} CPU thread{plural}")


def _warn_of_crowd(screen: Console, bench: Bench, threads: int, batch: int) -> None:
    taken = bench.crowded.get((threads, batch))
    if taken is not None:
        console.warn(screen, f"too noisy, not written: other programs took {taken:.1f} of {bench.place['cores']} cores")
        screen.print()


def _against(ratio: Speedup | None, *, crowded: bool) -> Text:
    if ratio is None:
        return Text()
    if crowded:
        return Text("too noisy", style=NOISY)
    return against(None if ratio.is_noise else ratio.median, ratio.low, ratio.high)


def _print_choices(screen: Console, choices: list[Choice], batch: int) -> None:
    content = console.table(
        console.words("matrix"),
        console.words("shape"),
        *map(console.numbers, ("sparsity %", "CSR ms", "dense ms", "CSR wins from %")),
        console.words("auto"),
    )
    for choice in choices:
        crossover = "never" if choice.crossover is None else f"{100 * choice.crossover:.1f}"
        dense = "dense, too noisy" if choice.against_dense.is_noise else "dense, CSR loses"
        content.add_row(
            choice.name,
            "x".join(map(str, choice.shape)),
            f"{100 * choice.sparsity:.2f}",
            formatting.milliseconds(choice.csr_ms),
            formatting.milliseconds(choice.dense_ms),
            Text("too noisy", style=NOISY) if choice.crossover_is_noise else crossover,
            Text("CSR") if choice.runtime == "csr" else Text(dense, style=SLOWER),
        )
    console.show(screen, content, f"CSR or dense in {DEPLOY}, batch {formatting.count(batch)}, 1 CPU thread")
