"""The table of a chain of runs: every candidate of every generation."""

from pathlib import Path

from rich.console import Console

from kdx.report import layout
from kdx.report.finished import read_table

CHAIN = "chain.csv"
# Errors may be absent, and M_0 has neither a teacher nor, where it comes from a file, a run.
TEXTS = frozenset({"teacher", "accepted", "val_error_percent", "run"})
NUMBERS = frozenset({"generation", "test_error_percent", "parameters", "C"})


def print_chain(screen: Console, run: Path) -> None:
    """Print the chain of the run in folder `run`, where it is one; UserError when its file is damaged."""
    rows = read_table(run / CHAIN, TEXTS, NUMBERS)
    if not rows:
        return
    content = layout.table(
        layout.words("student <- teacher"),
        layout.words(""),
        *map(layout.numbers, ("validation", "test", "parameters", "C")),
        layout.words("run"),
    )
    for row in rows:
        error, accepted = row["val_error_percent"], row["accepted"] == "yes"
        content.add_row(
            f"M_{row['generation']:.0f}" + (f" <- M_{row['teacher']}" if row["teacher"] else ""),
            "" if accepted else "refused",
            layout.percent(float(error) if error else None),
            layout.percent(row["test_error_percent"]),
            layout.count(row["parameters"]),
            layout.ratio(row["C"]),
            Path(row["run"]).name,
            style="" if accepted else "dim",
        )
    layout.show(screen, content, "Chain (errors in %)")
    screen.print("C = parameters of M_0, which is the teacher, / parameters.")
    screen.print("The validation error alone decides what is refused.")
    screen.print()
