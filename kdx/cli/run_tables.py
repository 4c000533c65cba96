"""The tables of one finished run."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from kdx import console, formatting
from kdx.cli.comparison import print_comparison
from kdx.runs.reader import Figures, number, read_figures, read_table
from kdx.runs.sanity import sanity_warnings

CHAIN, PRUNED = "chain.csv", "pruned.csv"
# Errors may be absent, and M_0 has neither a teacher nor, where it comes from a file, a run; a loss is there where they
# were compared.
TEXTS = frozenset({"teacher", "accepted", "val_error_percent", "val_loss", "run"})
NUMBERS = frozenset({"generation", "test_error_percent", "parameters", "C"})
# C is empty if no weight is left.
PRUNED_TEXTS = frozenset({"val_error_percent", "C", "run"})
PRUNED_NUMBERS = frozenset({"generation", "test_error_percent", "nonzero_weights"})


def print_chain(screen: Console, run: Path) -> None:
    """Print the chain of the run in folder `run`, if it is one; raises UserError if its files are damaged."""
    rows = read_table(run / CHAIN, TEXTS, NUMBERS)
    if not rows:
        return
    by_loss = any(row["val_loss"] for row in rows)
    content = console.table(
        console.words("student <- teacher"),
        console.words(""),
        *([console.numbers("loss")] if by_loss else []),
        *map(console.numbers, ("val", "test", "parameters", "C")),
        console.words("run"),
    )
    for row in rows:
        accepted = row["accepted"] == "yes"
        content.add_row(
            f"M_{row['generation']:.0f}" + (f" <- M_{row['teacher']}" if row["teacher"] else ""),
            "" if accepted else "refused",
            *([row["val_loss"] and f"{float(row['val_loss']):.4f}"] if by_loss else []),
            formatting.percent(_optional(row["val_error_percent"])),
            formatting.percent(row["test_error_percent"]),
            formatting.count(row["parameters"]),
            formatting.ratio(row["C"]),
            Path(row["run"]).name,
            style="" if accepted else "dim",
        )
    console.show(screen, content, "Chain (errors in %)")
    screen.print("C = parameters of M_0, which is the teacher, / parameters.")
    what = "loss, which was minimised," if by_loss else "error"
    screen.print(f"The {what} over validation images alone decides what is refused.")
    screen.print()
    _print_pruned(screen, run)


def _print_pruned(screen: Console, run: Path) -> None:
    rows = read_table(run / PRUNED, PRUNED_TEXTS, PRUNED_NUMBERS)
    if not rows:
        return
    names = ("val", "test", "nonzero weights", "C")
    content = console.table(console.words("pruned"), *map(console.numbers, names), console.words("run"))
    for row in rows:
        content.add_row(
            f"M_{row['generation']:.0f}",
            formatting.percent(_optional(row["val_error_percent"])),
            formatting.percent(row["test_error_percent"]),
            formatting.count(row["nonzero_weights"]),
            formatting.ratio(_optional(row["C"])),
            Path(row["run"]).name,
        )
    console.show(screen, content, "Chain after pruning (errors in %)")
    screen.print("C = nonzero weights of the pruned M_0 / nonzero weights.")
    screen.print()


def _optional(text: str) -> float | None:
    return float(text) if text else None


__all__ = ["print_comparison", "print_run"]

FLOAT32_BYTES = 4
SLOWER = "yellow"
NOISY = "red"

COMPARED = "Against: median of the ratios within a round, [95 % interval of the median]."

LAYER_TEXTS = frozenset({"layer", "shape"})
LAYER_NUMBERS = frozenset({"weights", "nonzero", "dense_bytes", "csr_bytes"})
LATENCY_TEXTS = frozenset({"device", "runtime"})
LATENCY_NUMBERS = frozenset({"threads", "batch", "median_ms", "p10_ms", "p90_ms", "repetitions"})
# Optional, since earlier versions did not compare round by round.
LATENCY_RATIOS = ("against_dense", "against_dense_low", "against_dense_high")


def print_run(run: Path) -> None:
    """Print the result of the finished run in folder `run` on standard output; UserError if a file is damaged."""
    figures = read_figures(run)
    layers = read_table(run / "layers.csv", LAYER_TEXTS, LAYER_NUMBERS)
    latencies = read_table(run / "latency.csv", LATENCY_TEXTS, LATENCY_NUMBERS, frozenset(LATENCY_RATIOS))
    screen = console.console()
    _print_headline(screen, figures)
    _print_result(screen, figures)
    print_chain(screen, run)
    if layers:
        _print_layers(screen, layers)
    if latencies:
        _print_latencies(screen, latencies)
    screen.print("1 kB = 1,000 bytes, 1 MB = 1,000,000 bytes. Dense: 4 bytes per weight and bias.")
    screen.print("CSR: 4-byte values, column indices and row pointers; biases dense.")
    for text in sanity_warnings(figures):
        console.warn(screen, text)


def _print_headline(screen: Console, figures: Figures) -> None:
    headline = Text(f"{figures['method']} on {figures['dataset']}", style="bold")
    headline.append(f"   run {figures['run_id']}", style="not bold")
    screen.print(headline)
    teacher = figures.get("teacher") or "none"
    settings = f"seed {formatting.count(number(figures, 'seed'))}, {formatting.count(number(figures, 'epochs'))} epochs"
    screen.print(f"teacher {teacher}, student {figures['student']}, {settings}")
    total, epoch = number(figures, "train_seconds"), number(figures, "seconds_per_epoch")
    if total is not None:
        each = "" if epoch is None else f" ({epoch:.2f} s per epoch)"
        screen.print(f"trained in {formatting.duration(total)}{each} on {figures.get('device') or 'an unknown device'}")
    screen.print()


def _print_result(screen: Console, figures: Figures) -> None:
    def of(key: str) -> float | None:
        return number(figures, key)

    weights, nonzero, teacher_bytes = of("weights"), of("nonzero_weights"), of("teacher_dense_bytes")
    teacher_parameters = None if teacher_bytes is None else teacher_bytes / FLOAT32_BYTES
    work, left, teacher_work = map(of, ("multiplications", "nonzero_multiplications", "teacher_multiplications"))
    sparsity = formatting.ABSENT if weights is None or nonzero is None else formatting.sparsity(weights, nonzero)
    content = console.table(
        console.words(""),
        console.numbers("teacher"),
        console.numbers("student"),
        console.words(""),
    )
    test, teacher_test = of("test_error_percent"), of("teacher_test_error_percent")
    r_s = Text("no weight is left", console.WARNING) if nonzero == 0 else _named("R_s", of("R_s"))
    rows: list[tuple[str, str, str, str | Text]] = [
        ("test error %", formatting.percent(teacher_test), formatting.percent(test), _difference(test, teacher_test)),
        ("validation error %", "", formatting.percent(of("val_error_percent")), ""),
        (
            "parameters",
            formatting.count(teacher_parameters),
            formatting.count(of("parameters")),
            _named("R_c", of("R_c")),
        ),
        ("weights", "", formatting.count(weights), "of the matrices below"),
        ("nonzero weights", "", formatting.count(nonzero), r_s),
        ("sparsity %", "", sparsity, ""),
        ("neurons (inputs of matrices)", "", formatting.count(of("neurons")), ""),
        ("neurons with nonzero weights", "", formatting.count(of("nonzero_neurons")), ""),
        ("multiplications", formatting.count(teacher_work), formatting.count(work), _times_fewer(teacher_work, work)),
        ("nonzero multiplications", "", formatting.count(left), _times_fewer(teacher_work, left)),
        ("bytes, dense", formatting.size(teacher_bytes), formatting.size(of("dense_bytes")), ""),
        ("bytes, CSR", "", formatting.size(of("csr_bytes")), _named("memory compression", of("memory_compression"))),
    ]
    for row in rows:
        content.add_row(*row)
    console.show(screen, content, "Result")
    screen.print("R_c = teacher / student parameters, R_s = weights / nonzero weights,")
    screen.print("memory compression = teacher dense bytes / student CSR bytes.")
    screen.print("Multiplications are those of weights and inputs, for one image.")
    screen.print()


def _print_layers(screen: Console, rows: list[dict[str, Any]]) -> None:
    content = console.table(
        console.words("layer"),
        console.words("shape"),
        *map(console.numbers, ("weights", "nonzero", "sparsity %", "dense", "CSR")),
    )
    larger = 0
    for row in rows:
        is_larger = row["csr_bytes"] > row["dense_bytes"]
        larger += is_larger
        content.add_row(
            row["layer"],
            row["shape"],
            formatting.count(row["weights"]),
            Text(formatting.count(row["nonzero"]), "" if row["nonzero"] else console.WARNING),
            formatting.sparsity(row["weights"], row["nonzero"]),
            formatting.size(row["dense_bytes"]),
            Text(formatting.size(row["csr_bytes"]), SLOWER if is_larger else ""),
        )
    console.show(screen, content, "Weight matrices (without biases)")
    if larger:
        matrices = "1 matrix is" if larger == 1 else f"{larger} of {len(rows)} matrices are"
        screen.print(Text(f"{matrices} larger as CSR than dense.", style=SLOWER))
        screen.print()


def _print_latencies(screen: Console, rows: list[dict[str, Any]]) -> None:
    content = console.table(
        console.words("device"),
        console.words("runtime"),
        *map(console.numbers, ("batch", "median ms", "p10 - p90 ms", "runs")),
        console.words("against dense"),
    )
    for row in sorted(rows, key=lambda row: (row["device"] != "cpu", row["device"], row["batch"])):
        content.add_row(
            row["device"],
            row["runtime"],
            formatting.count(row["batch"]),
            formatting.milliseconds(row["median_ms"]),
            f"{formatting.milliseconds(row['p10_ms'])} - {formatting.milliseconds(row['p90_ms'])}",
            formatting.count(row["repetitions"]),
            against(*(row[key] for key in LATENCY_RATIOS)) if row["runtime"] != "dense" else "",
        )
    threads = sorted({row["threads"] for row in rows})
    plural = "" if threads == [1] else "s"
    used = " and ".join(map(formatting.count, threads))
    console.show(screen, content, f"Latency of the student, {used} CPU thread{plural}")
    screen.print(COMPARED)
    screen.print()


def against(ratio: float | None, low: float | None, high: float | None) -> Text:
    """A speedup with its interval below it; slower ones are highlighted.

    An interval without a ratio means that it is too noisy; neither means that there was no comparison.
    """
    if not low or not high:
        return Text(formatting.ABSENT)
    if not ratio:
        return Text(f"too noisy:\n{_times(low)} - {_times(high)}x", style=NOISY)
    if ratio < 1:
        text, style, ends = f"{1 / ratio:,.2f}x SLOWER", SLOWER, (1 / high, 1 / low)
    else:
        text, style, ends = f"{ratio:,.2f}x faster", "", (low, high)
    if f"{max(ratio, 1 / ratio):.2f}" == "1.00":
        text, style = "equal", ""
    return Text(f"{text}\n[{ends[0]:,.2f}, {ends[1]:,.2f}]", style=style)


def _times(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"


def _difference(student: float | None, teacher: float | None) -> str:
    return "" if student is None or teacher is None else f"{student - teacher:+.2f} points"


def _times_fewer(teacher: float | None, student: float | None) -> str:
    return f"{formatting.ratio(teacher / student)} fewer" if teacher and student else ""


def _named(name: str, value: float | None) -> str:
    return "" if value is None else f"{name} {formatting.ratio(value)}"
