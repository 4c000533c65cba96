"""From command-line overrides to validated configurations; every mistake is reported before torch is imported."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdx.config.groups import Group, conf_folder, is_written, load_groups, package_folders
from kdx.config.hydra_keys import LAUNCHER, check_word, is_hydras, set_up
from kdx.config.schema import Config
from kdx.config.validation import settings_from
from kdx.errors import UserError, nearest, one_line, unknown

CONFIG_NAME = "config"
HYDRA_VERSION = "1.3"
SEARCH_PATH = "hydra.searchpath"
# Hydra lists these only if they are installed.
FURTHER_LAUNCHERS = ("submitit_local", "submitit_slurm")


def compose_config(overrides: Sequence[str]) -> Config:
    """The configuration of one run."""
    with _hydra():
        return to_config(_composed(_parsed(overrides, sweep=False)))


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its overrides as the user would type them, and the resulting configuration."""

    overrides: list[str]
    config: Config


def compose_sweep(overrides: Sequence[str]) -> list[Job]:
    """All jobs of a sweep, in the order of Hydra's own sweeper."""
    with _hydra():
        parsed = [override for override in _parsed(overrides, sweep=True) if not is_hydras(override)]
        for override in parsed:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line}: an interval has no values to take one by one; allowed: KEY=A,B or"
                    " KEY=range(FROM,TO,STEP)"
                )
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        if not jobs:
            raise UserError(f"sweep: {' '.join(overrides)} makes no job; allowed: at least one value for each key")
        return [Job(job, to_config(_composed(_parsed(job, sweep=True)))) for job in jobs]


def launcher_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Hydra's settings of the launcher that these overrides choose; raises UserError if one is wrong."""
    with _hydra():
        own = [override for override in _parsed(overrides, sweep=True) if is_hydras(override)]
        choice = [override.input_line or "" for override in own if override.key_or_group == LAUNCHER]
        try:
            launcher = compose(CONFIG_NAME, choice, return_hydra_config=True).hydra.launcher
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{' '.join(choice)}: {one_line(error)}") from None
        for override in own:
            if override.key_or_group != LAUNCHER:
                set_up(launcher, override)
    # Some values can be resolved only where the job runs.
    return dict(cast(dict[str, Any], OmegaConf.to_container(launcher, resolve=False)))


def defaults(overrides: Sequence[str]) -> dict[str, Any]:
    """Every key that can be set with these overrides, with its value; interpolations are not resolved."""
    with _hydra():
        return _flattened(_composed(_parsed(overrides, sweep=False)))


def to_config(composed: DictConfig) -> Config:
    """Resolve and validate a configuration composed by Hydra; raises UserError."""
    try:
        content = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error.msg or error).splitlines()[0]}") from None
    return settings_from(Config, content)


def to_hydra(words: Iterable[str]) -> list[str]:
    """Overrides in Hydra's spelling, which adds the folder of a shared group: teacher@teacher2=nin.

    The search path of installed packages' groups is added to them.
    """
    folders = ",".join(quoted(f"file://{folder}") for folder in package_folders())
    return [*([f"{SEARCH_PATH}=[{folders}]"] if folders else []), *in_hydras_spelling(words)]


def in_hydras_spelling(words: Iterable[str]) -> list[str]:
    """The overrides of one job as `to_hydra` writes them, without the search path."""
    names = {group.name: group.hydra_name for group in load_groups().values()}
    return [_renamed(word, names) for word in words]


def from_hydra(words: Iterable[str]) -> list[str]:
    """Overrides in Hydra's spelling, converted back to what the user typed."""
    names = {group.hydra_name: group.name for group in load_groups().values()}
    return [_renamed(word, names) for word in words]


def quoted(value: str) -> str:
    """A text quoted so that Hydra reads it unchanged."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _renamed(word: str, names: Mapping[str, str]) -> str:
    key, equals, value = word.partition("=")
    return f"{names.get(key, key)}{equals}{value}"


@contextmanager
def _hydra() -> Iterator[None]:
    with initialize_config_dir(config_dir=str(conf_folder()), version_base=HYDRA_VERSION):
        yield


def _parsed(overrides: Sequence[str], *, sweep: bool) -> list[Override]:
    """Parse the overrides; raises UserError for a malformed one, an unknown choice, or a key that is given twice."""
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(loader)
    groups = load_groups()
    result: dict[str, Override] = {}
    for text in overrides:
        try:
            (override,) = parser.parse_overrides([text])
        except OverrideParseException:
            raise UserError(
                f"'{text}' is not understood; allowed: KEY=VALUE (quote a VALUE with spaces or any of , {{}} [] () : =)"
            ) from None
        if is_hydras(override):
            launchers = {*loader.get_group_options(LAUNCHER), *FURTHER_LAUNCHERS}
            check_word(override, launchers, sweep=sweep)
        else:
            _check_form(override, groups, sweep=sweep)
        key = override.key_or_group
        if key in result:
            first, second = _typed_value(result[key]), _typed_value(override)
            raise UserError(f"{key}: '{second}' is a second value beside '{first}'; allowed: one")
        result[key] = override
    return list(result.values())


def _check_form(override: Override, groups: Mapping[str, Group], *, sweep: bool) -> None:
    text, key = override.input_line, override.key_or_group
    if key.partition(".")[0] == "sweep" and not sweep:
        raise UserError(f"{text}: this acts on sweeps only; add -m or leave it out")
    if override.is_add() or override.is_force_add() or override.is_delete() or override.package is not None:
        raise UserError(
            f"{text}: keys cannot be added, removed or moved; allowed: KEY=VALUE with a key of this list: "
            "kdx train --help"
        )
    if override.is_sweep_override() and not sweep:
        raise UserError(f"{text}: one value is allowed; several values are a sweep, which needs -m")
    if "/" in key:
        raise unknown(text or key, key, groups)
    if key in groups and not override.is_sweep_override():
        choice = override.value()
        if not isinstance(choice, str | int) or str(choice) not in groups[key].choices:
            raise unknown(key, _typed_value(override), groups[key].choices)


def _typed_value(override: Override) -> str:
    return (override.input_line or "").partition("=")[2]


def _composed(overrides: list[Override]) -> DictConfig:
    """Hydra's composition; cached by the group choices, since values are set afterwards in any case."""
    groups = load_groups()
    values = [override for override in overrides if not _chooses(override, groups)]
    choices = [override.input_line or "" for override in overrides if override not in values]
    try:
        composed = deepcopy(_chosen(conf_folder(), tuple(to_hydra(choices))))
        for override in values:
            OmegaConf.update(composed, override.key_or_group, override.value(), merge=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra has a plain ValueError for a group without a name, as in `=3`.
        raise _diagnosis(overrides, error) from None
    return composed


def _chooses(override: Override, groups: Mapping[str, Group]) -> bool:
    return override.key_or_group in groups and not isinstance(override.value(), dict)


# Cached: many jobs of a sweep have the same choices, and composing takes a tenth of a second.
@cache
def _chosen(folder: Path, words: tuple[str, ...]) -> DictConfig:
    return compose(CONFIG_NAME, list(words))


def _diagnosis(overrides: list[Override], error: Exception) -> UserError:
    """The reason why these overrides do not compose: nearly always a key that does not exist."""
    groups = load_groups()
    keys = _keys([override.input_line or "" for override in overrides if _chooses(override, groups)])
    for override in overrides:
        key = override.key_or_group
        known = key in groups or any(name == key or name.startswith(f"{key}.") for name in keys)
        if not known:
            return _unknown_key(override, keys, groups)
    return UserError(one_line(error))


def _unknown_key(override: Override, keys: list[str], groups: Mapping[str, Group]) -> UserError:
    key = override.key_or_group
    group = key.partition(".")[0]
    siblings = [name for name in keys if name.startswith(f"{group}.")] if "." in key else []
    # Composing every choice takes seconds, too long for a typing mistake.
    owners = [
        choice
        for choice in (groups[group].choices if group in groups and is_written(key) else ())
        if "/" not in choice and key in _keys([f"{group}={choice}"])
    ]
    if owners:
        hint = f"{group}={' or '.join(owners)} has it; "
    else:
        # `lr=0.1`: the group was forgotten.
        whole = min((name for name in keys if name.endswith(f".{key}")), key=len, default=key)
        hint = nearest(whole, [*keys, *groups])
    allowed = siblings or [*groups, *(name for name in keys if "." not in name)]
    where = " here" if owners else ""
    return UserError(f"{override.input_line}: unknown key{where}; {hint}allowed: {', '.join(allowed)}")


def _keys(overrides: list[str]) -> list[str]:
    try:
        return list(_flattened(_chosen(conf_folder(), tuple(to_hydra(overrides)))))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from None


def _flattened(composed: DictConfig) -> dict[str, Any]:
    return dict(_leaves(OmegaConf.to_container(composed, resolve=False), ""))


def _leaves(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
