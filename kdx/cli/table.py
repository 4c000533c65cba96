"""`kdx table`: the tables of finished runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from kdx.cli.arguments import outputs_folder
from kdx.errors import UserError

HELP = """\
usage: kdx table RUN ...

Print the tables of a finished run, or a comparison of several. RUN is a run's folder, or the beginning of its id. Of
several, those that are not finished are left out, and named."""


def main(words: Sequence[str]) -> int:
    """`kdx table`: the tables of finished runs; returns the exit code."""
    if not words:
        raise UserError("table: no run is given; allowed: the folders or ids of finished runs")
    from kdx.cli.comparison import print_comparison
    from kdx.cli.run_tables import print_run

    runs = _finished(words)
    if len(runs) == 1:
        print_run(runs[0])
    else:
        print_comparison(runs)
    return 0


def _finished(words: Sequence[str]) -> list[Path]:
    """The finished runs among those named, which a glob may have found; the others are reported."""
    from kdx.runs.reader import Unfinished, finished_run

    runs, unfinished = [], list[Unfinished]()
    for word in words:
        try:
            runs.append(finished_run(word, outputs_folder()))
        except Unfinished as error:
            unfinished.append(error)
    if not runs:
        raise unfinished[0]
    for error in unfinished:
        print(f"kdx: {error}; it is left out", file=sys.stderr)
    return runs
