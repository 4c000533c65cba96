"""The overview at the top of the page: counts, machines, and how the papers' claims turned out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdx.report.outputs import Found
from kdx.reproduce.reader import Table


@dataclass(frozen=True)
class Overview:
    """Counts over the whole page; claims and cells count only for runs with the papers' budgets and settings."""

    runs: Counter[str]
    unfinished: int
    marks: Counter[str]
    machines: Counter[str]
    claims: Counter[str]
    cells: Counter[str]


def overview_of(found: Found) -> Overview:
    """Count what was found."""
    results = [table for table in found.tables if table.is_result]
    places = [table.provenance.machine for table in found.tables]
    places += [run.inference.machine for run in found.runs.values() if run.inference]
    return Overview(
        runs=Counter(run.status for run in found.runs.values() if run.id),
        unfinished=len(found.unfinished),
        marks=Counter(table.mark for table in found.tables),
        machines=Counter(machine_text(place) for place in places if place),
        claims=answers(results),
        cells=Counter(cell.verdict for table in results for cell in table.cells if cell.verdict),
    )


def answers(tables: Iterable[Table]) -> Counter[str]:
    """How many claims, among those about kdx's runs, hold, fail, are undecided or untested."""
    return Counter(
        claim.answer
        for table in tables
        for claim in table.provenance.claims
        if not claim.row or any(job.row == claim.row for job in table.jobs)
    )


def machine_text(machine: Mapping[str, Any]) -> str:
    """The description of a machine, without what changes from day to day."""
    cores = machine.get("cores")
    parts = [machine.get("cpu"), cores and f"{cores} cores"]
    versions = [f"{name} {machine[name]}" for name in ("torch", "kdx") if machine.get(name)]
    return ", ".join(map(str, filter(None, [*parts, *versions]))) or "not recorded"
