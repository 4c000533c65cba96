"""Reproduced tables as Markdown and LaTeX."""

import shlex
from collections import Counter
from collections.abc import Sequence

from kdx import formatting
from kdx.analysis.statistics import Estimate
from kdx.reproduce.cells import Cell, Checked
from kdx.reproduce.jobs import JobResult, Request
from kdx.reproduce.tables import PaperTable
from kdx.runs.reader import execution_text

ABSENT = "–"
INCOMPLETE = "(2 of 3) and the like: only so many seeds have it; it is not judged, and no claim is decided on it."
TEX = str.maketrans({char: f"\\{char}" for char in "&%$#_{}"})


def markdown(
    table: PaperTable, order: Request, done: Sequence[JobResult], cells: Sequence[Cell], claims: Sequence[Checked]
) -> str:
    """The table as Markdown, with its claims, notes and missing runs."""
    rows = by_row(table, cells)
    titles = [column.title for column in table.columns.values()]
    lines = [f"# {table.title}", "", *_warning(order)]
    lines += [f"{_counted(order.seeds)} [published, difference]. One network, or one run, has no interval."]
    if any(cell.lacking for cell in cells):
        lines += ["", INCOMPLETE]
    lines += ["", _line(["", *titles]), _line(["---", *["---:"] * len(titles)])]
    lines += [_line([label, *map(cell_text, row)]) for label, row in rows.items()]
    if claims:
        lines += ["", "| claim | | ours | against | t test |", "|---|---|---:|---:|---|"]
        lines += [_claim_line(each) for each in claims]
    finished = {(each.job.row, each.job.seed) for each in done if each.status == "finished"}
    missing = _missing(done)
    missing += [
        f"{cell.row}, seed {seed}: it has no {cell.column}"
        for cell in cells
        for seed in cell.lacking
        if (cell.row, seed) in finished
    ]
    lines += _listed("Missing", missing) + _listed("Notes", [*table.notes, *_executed(done), *_recorded(done)])
    return "\n".join(lines) + "\n"


def latex(table: PaperTable, order: Request, cells: Sequence[Cell]) -> str:
    """The table as LaTeX for booktabs, with our and the published number side by side."""
    columns = "l" + "rr" * len(table.columns)
    heads = " & ".join(f"\\multicolumn{{2}}{{c}}{{{_tex(column.title)}}}" for column in table.columns.values())
    lines = [f"% {table.title}", *(f"% {line}" for line in _warning(order) if line), f"\\begin{{tabular}}{{{columns}}}"]
    lines += ["\\toprule", f" & {heads} \\\\", " & ours & paper" * len(table.columns) + " \\\\", "\\midrule"]
    for label, row in by_row(table, cells).items():
        pairs = " & ".join(f"{_tex_ours(cell)} & {_tex(cell.published or ABSENT)}" for cell in row)
        lines.append(f"{_tex(label)} & {pairs} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def by_row(table: PaperTable, cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of every row, in the order of the columns."""
    return {label: [cell for cell in cells if cell.row == label] for label in table.rows}


def cell_text(cell: Cell) -> str:
    """A cell such as `1.58 ± 0.05 [1.88, -0.30 better]`; `missing` if a run has not finished."""
    printed = f" [{cell.published}]" if cell.published else ""
    if cell.ours is None:
        return (ABSENT if cell.complete else "missing") + printed
    ours = estimate_text(cell.ours) + cell.counted
    if cell.difference is None:
        return ours + printed
    difference = formatting.signed(cell.difference, formatting.decimals(cell.ours.mean))
    return f"{ours} [{cell.published}, {difference} {cell.verdict}]".replace(" ]", "]")


def estimate_text(estimate: Estimate) -> str:
    """The mean, with half of its interval where there is one."""
    return formatting.with_interval(estimate.mean, estimate.half_width)


def _counted(seeds: int) -> str:
    return "One seed" if seeds == 1 else f"Mean ± half the 95 % interval over {seeds} seeds"


def _missing(done: Sequence[JobResult]) -> list[str]:
    """The unfinished runs, a line per row and reason."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for each in done:
        if each.status != "finished":
            seeds.setdefault((each.job.row, each.reason), []).append(each.job.seed)
    return [
        f"{row}, seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}: {reason}"
        for (row, reason), found in seeds.items()
    ]


def _executed(done: Sequence[JobResult]) -> list[str]:
    """A note on how the runs were executed, since float32 rounding may differ between them."""
    ways = Counter(execution_text(each.figures) for each in done if each.device is not None)
    if not ways:
        return []
    return [f"Runs as they were executed: {'; '.join(f'{number} on {way}' for way, number in ways.most_common())}."]


def _recorded(done: Sequence[JobResult]) -> list[str]:
    number = sum(each.recorded is not None for each in done)
    if not number:
        return []
    return [f"{number} of {len(done)} runs are those of an earlier table; provenance.json says of which machine."]


def _warning(order: Request) -> list[str]:
    lines = []
    if order.budget != "paper":
        smoke = "tiny runs on other data that only show that everything works"
        what = smoke if order.budget == "smoke" else "short runs"
        lines += [f"**budget={order.budget}: {what}; the numbers are not results.**", ""]
    if order.changes:
        lines += [f"**Every run with {shlex.join(order.changes)}: not the settings of this table.**", ""]
    return lines


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _claim_line(checked: Checked) -> str:
    ours = estimate_text(checked.ours) if checked.ours else "missing"
    match checked.than:
        case Estimate():
            than = estimate_text(checked.than)
        case None:
            than = "missing"
        case number:
            than = f"{number:g}"
    if checked.claim.margin and checked.than is not None:
        than += f" + {checked.claim.margin:g}"
    test = checked.reason or formatting.t_test(checked.answer, checked.test.t, checked.test.df, checked.test.p)
    return _line([checked.claim.text, f"**{checked.answer}**", ours, than, test])


def _listed(title: str, texts: Sequence[str]) -> list[str]:
    return ["", f"{title}:", "", *(f"- {text}" for text in texts)] if texts else []


def _tex(text: str) -> str:
    return text.translate(TEX).replace("±", "$\\pm$").replace("–", "--")


def _tex_ours(cell: Cell) -> str:
    if cell.ours is None:
        return _tex(ABSENT if cell.complete else "missing")
    return _tex(estimate_text(cell.ours) + cell.counted)
