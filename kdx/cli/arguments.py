"""Command-line arguments: names, such as those of runs, and KEY=VALUE settings."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from kdx.errors import UserError, unknown

HELP = ("-h", "--help")
RUNS = "the folders or ids of finished runs"


def split_options(words: Sequence[str], allowed: Collection[str]) -> tuple[list[str], list[str]]:
    """The options among `words`, and the other words; raises UserError for an option that is not `allowed`."""
    options = [word for word in words if word.startswith("-")]
    for option in sorted(set(options).difference(allowed)):
        raise unknown("option", option, (*HELP, *allowed))
    return options, [word for word in words if not word.startswith("-")]


def names_and_settings(
    command: str, words: Sequence[str], keys: Collection[str], thing: str = "run", allowed: str = RUNS
) -> tuple[list[str], dict[str, str]]:
    """Sort `words` into at least one name of a `thing` and the settings `keys`; UserError as `words_and_settings`."""
    names, settings = words_and_settings(words, keys)
    if not names:
        raise UserError(f"{command}: no {thing} is given; allowed: {allowed}")
    return names, settings


def words_and_settings(words: Sequence[str], keys: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Sort `words` into plain ones and the settings `keys`; UserError for options and unknown or repeated keys."""
    plain: list[str] = []
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise unknown("option", word, HELP)
        if not equals or "/" in key:
            plain.append(word)
        elif key not in keys:
            raise unknown("key", key, keys)
        elif key in settings:
            raise UserError(f"{key}: '{value}' is a second value beside '{settings[key]}'; allowed: one")
        else:
            settings[key] = value
    return plain, settings


def flag(key: str, text: str) -> bool:
    """The value of a boolean setting; raises UserError for anything but true and false."""
    if text not in ("true", "false"):
        raise unknown(key, text, ("true", "false"))
    return text == "true"


def outputs_folder() -> Path:
    """The folder of results: $KDX_OUTPUTS, else `outputs`."""
    return Path(os.environ.get("KDX_OUTPUTS", "outputs"))
