"""The words behind a command: runs or a folder, and KEY=VALUE settings."""

from collections.abc import Collection, Sequence

from kdx.errors import UserError, unknown


def runs_and_settings(command: str, words: Sequence[str], keys: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Sort `words` into runs, at least one, and the settings `keys`; UserError as for `words_and_settings`."""
    runs, settings = words_and_settings(words, keys)
    if not runs:
        raise UserError(f"{command}: no run is given; allowed: the folders or ids of finished runs")
    return runs, settings


def words_and_settings(words: Sequence[str], keys: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Sort `words` into plain ones and the settings `keys`; UserError for options, unknown or repeated keys."""
    plain: list[str] = []
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise unknown("option", word, ("-h", "--help"))
        if not equals or "/" in key:
            plain.append(word)
        elif key not in keys:
            raise unknown("key", key, keys)
        elif key in settings:
            raise UserError(f"{key}: '{value}' is a second value beside '{settings[key]}'; allowed: one")
        else:
            settings[key] = value
    return plain, settings
