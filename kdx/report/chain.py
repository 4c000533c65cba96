"""The tables of a chain of runs: every candidate of every generation, and the pruned accepted members."""

from pathlib import Path

from rich.console import Console

from kdx.report import formatting, layout
from kdx.report.finished import read_table

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
    content = layout.table(
        layout.words("student <- teacher"),
        layout.words(""),
        *([layout.numbers("loss")] if by_loss else []),
        *map(layout.numbers, ("val", "test", "parameters", "C")),
        layout.words("run"),
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
    layout.show(screen, content, "Chain (errors in %)")
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
    content = layout.table(layout.words("pruned"), *map(layout.numbers, names), layout.words("run"))
    for row in rows:
        content.add_row(
            f"M_{row['generation']:.0f}",
            formatting.percent(_optional(row["val_error_percent"])),
            formatting.percent(row["test_error_percent"]),
            formatting.count(row["nonzero_weights"]),
            formatting.ratio(_optional(row["C"])),
            Path(row["run"]).name,
        )
    layout.show(screen, content, "Chain after pruning (errors in %)")
    screen.print("C = nonzero weights of the pruned M_0 / nonzero weights.")
    screen.print()


def _optional(text: str) -> float | None:
    return float(text) if text else None
