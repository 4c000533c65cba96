"""Reconstructs the `kdx train` command of a run from its configuration."""

import re
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from kdx.analysis.differences import is_hidden
from kdx.config.compose import compose_config, quoted
from kdx.config.groups import load_groups
from kdx.config.schema import Config
from kdx.config.validation import settings_from
from kdx.errors import UserError
from kdx.runs.identity import run_id
from kdx.runs.reader import flat

GROUPS = ("dataset", "teacher", "student", "method")
FURTHER = ("teacher2", "teacher3")
# Texts that Hydra reads without quotes.
PLAIN = re.compile(r"[\w./@+-]+")
Settings = Mapping[str, Any]


def command_of(settings: Settings, run: str) -> str:
    """The command that makes the run with these settings; empty if no command gives this run id.

    That is so for a generation of a chain, and for a run of another version of kdx in which the settings meant
    something else.
    """
    names = {key: str(settings[key].get("name")) for key in (*GROUPS, *FURTHER) if isinstance(settings.get(key), dict)}
    groups = load_groups()
    if any(name not in groups[key].choices for key, name in names.items()):
        return ""
    words = [f"{key}={name}" for key, name in names.items()]
    try:
        base = _composed(tuple(words))
        given = {key: value for key, value in flat(settings).items() if not _is_free(key)}
        # How it was executed is told as well, by the settings that there are today.
        given |= {key: value for key, value in flat(settings).items() if key.startswith("device.") and key in base}
        differing = {key: value for key, value in given.items() if key not in base or base[key] != value}
        known = {key: value for key, value in differing.items() if key in base}
        changed = settings_from(Config, _nested({**base, **known}))
        if known.keys() != differing.keys() or run_id(changed) != run:
            return ""
    except UserError:
        return ""
    return shlex.join(["kdx", "train", *words, *(f"{key}={_typed(value)}" for key, value in known.items())])


@cache
def _composed(words: tuple[str, ...]) -> dict[str, Any]:
    return flat(compose_config(words).model_dump(mode="json"))


def _is_free(key: str) -> bool:
    """Whether the setting changes no result, so that the command can leave it out; not so for further teachers."""
    return is_hidden(key) and key not in FURTHER


def _nested(settings: Settings) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, last = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return nested


def _typed(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return f"[{','.join(map(_typed, value))}]"
        case str() if not PLAIN.fullmatch(value):
            return quoted(value)
        case _:
            return str(value)
