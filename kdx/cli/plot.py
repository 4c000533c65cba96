"""`kdx plot`: the trade-off of all finished runs of a data set."""

from collections.abc import Sequence
from pathlib import Path

from kdx.cli.arguments import flag, names_and_settings, outputs_folder
from kdx.errors import UserError

PATTERNS = ("student", "method")
KEYS = ("x", "y", *PATTERNS, "out", "recorded")

HELP = """\
usage: kdx plot DATASET [x=FIGURE] [y=FIGURE] [student=PATTERN] [method=PATTERN] [KEY=PATTERN ...] [recorded=true]
                [out=NAME]

Draw the finished runs of a data set and the networks that the papers print for it, as NAME.svg and NAME.png, with the
points in NAME.csv. Runs that differ in their seed only are one point with the 95 % interval.

x, y             figures of metrics.json: R_s and test_error_percent by default
student, method  only runs that match, such as method=st-* or student=mlp-500-50,lenet-300-100
KEY              any other setting of the runs, such as trainer.epochs=100 or teacher.name=mlp-*; without
                 dataset.train_size, those that trained on the whole training set
recorded=true    also the runs that only a reproduced table in outputs/paper tells of
out              outputs/plots/DATASET by default"""


def main(words: Sequence[str]) -> int:
    """`kdx plot`: the trade-off of all finished runs of a data set; returns the exit code."""
    typed = [word.partition("=")[0] for word in words]
    keys = (*KEYS, *(key for key in typed if "." in key))
    names, given = names_and_settings("plot", words, keys, "data set", "a data set with finished runs, such as mnist")
    if len(names) > 1:
        raise UserError(f"plot: '{names[1]}' is a second data set; allowed: one")
    dataset = names[0]
    from kdx.report.plot import experiments, published, trade_off

    out = Path(given.pop("out", outputs_folder() / "plots" / dataset))
    where = {key: given.pop(key) for key in list(given) if key in PATTERNS or "." in key}
    recorded = flag("recorded", given.pop("recorded", "false"))
    x, y = given.get("x", "R_s"), given.get("y", "test_error_percent")
    ours = experiments(dataset, outputs_folder(), x, y, where, recorded=recorded)
    for file in trade_off([*ours, *published(dataset, x, y)], out, x, y):
        print(file)
    return 0
