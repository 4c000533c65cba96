"""The tables of a measurement."""

from statistics import median
from typing import Any

from rich.text import Text

from benchmarks.work import REDUCED, USUAL, VARIANTS
from kdx import console, formatting

EXPLANATIONS = (
    "times as fast: median over the rounds of usual / variant within a round, and its range.",
    "GFLOP/s: the student's matrix products over the whole epoch's time; peak: one large product's rate.",
    "at most: how many times as fast if an epoch were these products alone, at the peak rate.",
)


def show(result: dict[str, Any]) -> None:
    """Print the machine, one table per job, and what compilation costs."""
    screen = console.console()
    machine, options = result["machine"], result["options"]
    screen.print(f"{machine['cpu']}, {options['threads']} threads of {machine['cores']} cores; {machine['system']}")
    screen.print(f"torch {machine['torch']}, Python {machine['python']}, kdx {machine['kdx']} ({machine['commit']})")
    screen.print(
        f"{options['dataset']}, batch {options['batch_size']}, {options['epochs']} rounds, "
        f"load average {machine['load_average']:.2f} before, {machine['date']}"
    )
    screen.print("The teacher is untrained: the time does not depend on its values.")
    if result["remark"]:
        console.warn(screen, f"no measurement: {result['remark']}")
    screen.print()
    for job in result["jobs"].values():
        _show_job(screen, job["title"], job["variants"])
    for line in EXPLANATIONS:
        screen.print(line, style="dim")


def speedups(variants: dict[str, Any], variant: str, baseline: str = USUAL) -> list[float] | None:
    """How many times as fast as the baseline, round by round; None where that was not measured."""
    if baseline not in variants or variant in (USUAL, baseline):
        return None
    pairs = zip(variants[baseline]["seconds"], variants[variant]["seconds"], strict=True)
    return [usual / seconds for usual, seconds in pairs]


def gflops(measured: dict[str, Any]) -> float:
    """The achieved rate of the student's matrix products."""
    return measured["gflop_per_step"] * measured["steps_per_epoch"] / median(measured["seconds"])


def seconds_at_peak(measured: dict[str, Any]) -> float:
    """What an epoch's matrix products of the student would take at the peak rate: no step is faster."""
    return measured["gflop_per_step"] * measured["steps_per_epoch"] / measured["peak_gflops"]


def repaid_after(compiled: dict[str, Any], eager: dict[str, Any], state: str) -> float | None:
    """After how many epochs compilation has saved what it cost, or None where it saves nothing."""
    saved = median(eager["seconds"]) - median(compiled["seconds"])
    return compiled["compile_seconds"][state] / saved if saved > 0 else None


def _show_job(screen: Any, title: str, variants: dict[str, Any]) -> None:
    steps = next(iter(variants.values()))["steps_per_epoch"]
    content = console.table(
        console.words(""),
        *(console.numbers(header) for header in ("s/epoch", "times as fast", "range", "at most", "GFLOP/s", "of peak")),
    )
    for variant, measured in variants.items():
        seconds, ratios, rate = measured["seconds"], speedups(variants, variant), gflops(measured)
        content.add_row(
            VARIANTS[variant],
            f"{median(seconds):.3f}",
            Text(f"{median(ratios):.2f}", "bold") if ratios else formatting.ABSENT,
            f"{min(ratios):.2f}-{max(ratios):.2f}" if ratios else formatting.ABSENT,
            f"{median(variants[USUAL]['seconds']) / seconds_at_peak(measured):.1f}" if ratios else formatting.ABSENT,
            f"{rate:.0f}",
            f"{100 * rate / measured['peak_gflops']:.0f} %",
        )
    console.show(screen, content, f"{title}, {steps} steps an epoch")
    for variant in variants:
        ratios = speedups(variants, variant, REDUCED)
        if ratios:
            screen.print(
                f"{VARIANTS[variant]}: {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times as fast"
                " as the usual way without the padded block"
            )
    for variant, measured in variants.items():
        if "compile_seconds" in measured:
            screen.print(f"{VARIANTS[variant]}: {_compilation(measured, variants.get('eager'))}")
    peaks = {f"{one['peak_gflops']:.0f} ({one['gemm']})": VARIANTS[name] for name, one in variants.items()}
    screen.print("peak GFLOP/s: " + ", ".join(f"{name} {rate}" for rate, name in peaks.items()))
    screen.print()


def _compilation(compiled: dict[str, Any], eager: dict[str, Any] | None) -> str:
    cost = compiled["compile_seconds"]
    text = f"compiles in {cost['cold']:.1f} s, {cost['cached']:.1f} s from the disk cache"
    if eager is None:
        return text
    cold, cached = (repaid_after(compiled, eager, state) for state in ("cold", "cached"))
    if cold is None or cached is None:
        return f"{text}; saves nothing over eager"
    return f"{text}; repaid after {cold:.0f} ({cached:.0f}) epochs"
