"""The settings in which runs differ: which, their short names and their values as text."""

from collections.abc import Iterable, Sequence
from typing import Any

from kdx import formatting
from kdx.runs.identity import changes_result

# Follows from the name of the further teacher.
TOLD = frozenset({"teacher2", "teacher3"})
# Settings that have a column of their own.
SHOWN = frozenset({"seed", "trainer.epochs", "method.name", "student.name"})
# Settings that follow from a group's name (the widths of a network, the parts of a method).
IMPLIED = {
    "dataset.": "dataset.name",
    "teacher.": "teacher.name",
    "teacher2.": "teacher2.name",
    "teacher3.": "teacher3.name",
    "student.": "student.name",
    "method.parts": "method.name",
}

Settings = dict[str, Any]
MISSING = object()


def setting_text(value: Any) -> str:
    """A setting as the user would type it; a dash if a run has no such setting."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.12g}"
        case list():
            return ",".join(map(setting_text, value)) or "[]"
        case _:
            return formatting.ABSENT if value is MISSING else str(value)


def differing_keys(settings: Sequence[Settings]) -> list[str]:
    """The dotted keys whose values differ between runs: method and trainer first, then those of all runs."""
    keys = list(dict.fromkeys(key for run in settings for key in run))
    found = [key for key in keys if _tells_apart(key, settings)]
    return sorted(
        found, key=lambda key: (not key.startswith(("method.", "trainer.")), not all(key in run for run in settings))
    )


def is_hidden(key: str) -> bool:
    """Whether a setting cannot change a result, or follows from another one that is shown."""
    return key in TOLD or key.startswith("hydra.") or not changes_result(key)


def _tells_apart(key: str, settings: Sequence[Settings]) -> bool:
    if key in SHOWN or is_hidden(key):
        return False
    if len({setting_text(run.get(key, MISSING)) for run in settings}) == 1:
        return False
    name = next((name for prefix, name in IMPLIED.items() if key.startswith(prefix) and key != name), None)
    if name is None:
        return True
    by_name: dict[str, str] = {}
    return any(
        by_name.setdefault(setting_text(run.get(name)), value) != value
        for run in settings
        for value in [setting_text(run.get(key, MISSING))]
    )


def shortest_names(keys: Iterable[str], among: Iterable[str]) -> dict[str, str]:
    """The shortest suffix of every dotted key that identifies it."""
    among = list(among)
    labels = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        labels[key] = next(
            (ending for ending in endings if sum(f".{other}".endswith(f".{ending}") for other in among) == 1), key
        )
    return labels
