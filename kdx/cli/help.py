"""The texts of `kdx --help` and `kdx train --help`, with the choices and keys of `conf/`."""

from collections.abc import Sequence

from kdx.config.groups import Choice, Group, load_groups
from kdx.config.validation import format_value

_EXAMPLES = """\
examples:
  kdx train                                     the default method on MNIST
  kdx train method=st-vbd dataset=digits        real digits that need no download
  kdx train method=kd method.T=4 seed=1
  kdx train -m method=kd,st-vbd seed=0,1,2      a sweep: six runs and one table
  kdx train method=kd --help                    the keys of that method"""


def train_help(overrides: Sequence[str]) -> str:
    """The help of `kdx train`, with the keys' values under these overrides."""
    from kdx.config.compose import defaults

    groups = load_groups()
    keys = defaults(overrides)
    width = max(map(len, keys))
    return "\n\n".join(
        (
            "usage: kdx train [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]",
            "Train a student, print its table and, as the last line, its folder. A finished run is not repeated\n"
            "(force=true repeats it), an interrupted one goes on. -m, --multirun: several values, separated by commas.",
            *(_group_help(group) for group in groups.values()),
            "keys and their values with these choices:\n"
            + "\n".join(f"  {key:<{width}}  {_value(value)}" for key, value in keys.items()),
            _EXAMPLES,
        )
    )


def _group_help(group: Group) -> str:
    if group.folder != group.name:
        return f"{group.name}=\n  {group.default} (default)\n  or a choice of {group.folder}="
    width = max(map(len, group.choices), default=0)
    lines = (f"  {name:<{width}}  {_choice(choice, name == group.default)}" for name, choice in group.choices.items())
    return "\n".join((f"{group.name}=", *map(str.rstrip, lines)))


def _choice(choice: Choice, default: bool) -> str:
    package = f" (package {choice.package})" if choice.package else ""
    return f"{choice.description}{package}{' (default)' if default else ''}"


def _value(value: object) -> str:
    return value if isinstance(value, str) else format_value(value)
