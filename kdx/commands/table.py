"""`kdx table`: the tables of finished runs."""

from collections.abc import Sequence

from kdx.commands import outputs_folder
from kdx.errors import UserError

HELP = """\
usage: kdx table RUN ...

Print the tables of a finished run, or a comparison of several. RUN is a run's folder, or the beginning of its id."""


def main(words: Sequence[str]) -> int:
    """`kdx table`: the tables of finished runs."""
    if not words:
        raise UserError("table: no run is given; allowed: the folders or ids of finished runs")
    from kdx.report.table import finished_run, print_comparison, print_run

    runs = [finished_run(word, outputs_folder()) for word in words]
    if len(runs) == 1:
        print_run(runs[0])
    else:
        print_comparison(runs)
    return 0
