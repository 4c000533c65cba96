"""The table of a sweep: mean, standard deviation and 95 % interval of each experiment."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from kdx import console, formatting
from kdx.analysis.differences import MISSING, differing_keys, setting_text, shortest_names
from kdx.analysis.statistics import Estimate
from kdx.analysis.summary import Group, seeds_text, setting_name


def print_summary(groups: Sequence[Group]) -> None:
    """Print mean, standard deviation and 95 % interval of each experiment, if any has more than one seed."""
    if all(group.asked == 1 for group in groups):
        return
    settings = [group.settings for group in groups]
    keys = differing_keys(settings)
    labels = shortest_names(keys, {key for one in settings for key in one})
    screen = console.console()
    shown = len(keys)
    while shown and not console.fits(screen, _table(groups, keys[:shown], labels)):
        shown -= 1
    console.show(screen, _table(groups, keys[:shown], labels), "Mean ± standard deviation, 95 % interval of the mean")
    if keys[shown:]:
        screen.print(f"... also different: {', '.join(labels[key] for key in keys[shown:])}")
    for group in groups:
        if len(group.executions) > 1:
            console.warn(
                screen, f"{setting_name(group, 'method')}: its runs were executed on {'; '.join(group.executions)}"
            )


def _table(groups: Sequence[Group], keys: Sequence[str], labels: Mapping[str, str]) -> Table:
    # If data sets and teachers differ, their settings are shown.
    names = [
        "method",
        *(name for name in ("student", "epochs") if len({setting_name(group, name) for group in groups}) > 1),
    ]
    content = console.table(
        *map(console.words, (*names, *(labels[key] for key in keys))),
        *map(console.numbers, ("seeds", "test err %", "val err %", "R_s")),
    )
    for group in groups:
        content.add_row(
            *(setting_name(group, name) for name in names),
            *(setting_text(group.settings.get(key, MISSING)) for key in keys),
            seeds_text(group),
            *(_text(group.estimate(key)) for key in ("test_error_percent", "val_error_percent", "R_s")),
        )
    return content


def _text(of: Estimate | None) -> str:
    if of is None:
        return formatting.ABSENT
    if of.sd is None:
        return f"{of.mean:.2f}"
    return f"{of.mean:.2f} ± {of.sd:.2f}\n[{of.low:.2f}, {of.high:.2f}]"
