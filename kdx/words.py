"""The words behind a command: names, such as those of runs, and KEY=VALUE settings."""

from collections.abc import Collection, Sequence

from kdx.errors import UserError, unknown

RUNS = "the folders or ids of finished runs"


def names_and_settings(
    command: str, words: Sequence[str], keys: Collection[str], thing: str = "run", allowed: str = RUNS
) -> tuple[list[str], dict[str, str]]:
    """Sort `words` into names of `thing`s and the settings `keys`.

    Raises UserError for options, unknown or repeated keys, and where there is no name; then it says what is allowed.
    """
    names: list[str] = []
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise unknown("option", word, ("-h", "--help"))
        if not equals or "/" in key:
            names.append(word)
        elif key not in keys:
            raise unknown("key", key, keys)
        elif key in settings:
            raise UserError(f"{key}: '{value}' is a second value beside '{settings[key]}'; allowed: one")
        else:
            settings[key] = value
    if not names:
        raise UserError(f"{command}: no {thing} is given; allowed: {allowed}")
    return names, settings
