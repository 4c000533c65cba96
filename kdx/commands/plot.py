"""`kdx plot`: the trade-off of all finished runs of a data set."""

from collections.abc import Sequence
from pathlib import Path

from kdx.commands import outputs_folder
from kdx.errors import UserError
from kdx.words import names_and_settings

HELP = """\
usage: kdx plot DATASET [x=FIGURE] [y=FIGURE] [student=PATTERN] [method=PATTERN] [out=NAME]

Draw the finished runs of a data set and the networks that the papers print for it, as NAME.svg and NAME.png, with the
points in NAME.csv. Runs that differ in their seed only are one point with the 95 % interval.

x, y             figures of metrics.json: R_s and test_error_percent by default
student, method  only runs that match, such as method=st-* or student=mlp-500-50,lenet-300-100
out              outputs/plots/DATASET by default"""


def main(words: Sequence[str]) -> int:
    """`kdx plot`: the trade-off of all finished runs of a data set."""
    keys = ("x", "y", "student", "method", "out")
    names, given = names_and_settings("plot", words, keys, "data set", "a data set with finished runs, such as mnist")
    if len(names) > 1:
        raise UserError(f"plot: '{names[1]}' is a second data set; allowed: one")
    dataset = names[0]
    from kdx.plot import trade_off

    out = Path(given.pop("out", outputs_folder() / "plots" / dataset))
    for file in trade_off(dataset, outputs_folder(), out, **given):
        print(file)
    return 0
