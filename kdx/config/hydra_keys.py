"""Hydra's own settings: the user may choose and set the launcher, everything else is fixed by kdx."""

from collections.abc import Collection

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from kdx.config.validation import format_value
from kdx.errors import UserError, unknown

LAUNCHER = "hydra/launcher"
SETTINGS = "hydra.launcher."
ALLOWED = f"{LAUNCHER}=NAME and {SETTINGS}KEY=VALUE, with -m"
_FOLDERS = "outputs=FOLDER or the environment variable KDX_OUTPUTS"
# What replaces Hydra's keys, by their prefix.
_INSTEAD = {
    "run": f"the folder of a run follows from its settings; allowed: {_FOLDERS}",
    "sweep": f"the folder of a sweep is outputs/sweeps/<name>; allowed: sweep.name=NAME, {_FOLDERS}",
    "job.chdir": f"every job stays in the folder where kdx was started; allowed: {_FOLDERS}",
    "output_subdir": "the folder of a run has its config.yaml; allowed: leave it out",
    "mode": "kdx train is one run and kdx train -m a sweep; allowed: -m, or leave it out",
    "searchpath": "it has the folders of installed packages; allowed: a package that has the choice",
    "sweeper": "the jobs of a sweep are all combinations of the values that are typed; allowed: KEY=A,B",
    "verbose": "the log of a run is kdx.log in its folder; allowed: leave it out",
    "job_logging": "the log of a run is kdx.log in its folder; allowed: leave it out",
    "hydra_logging": "the log of a run is kdx.log in its folder; allowed: leave it out",
}
_PARAMETERS = "hydra.sweeper.params."
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}


def is_hydras(override: Override) -> bool:
    """Whether the override is about Hydra's own settings."""
    key = override.key_or_group
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def is_hydras_word(word: str) -> bool:
    """The same for an override as it is typed."""
    key = word.lstrip("+~").partition("=")[0]
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def check_word(override: Override, launchers: Collection[str], *, sweep: bool) -> None:
    """Raise UserError for a Hydra setting that the user may not change; the message names what replaces it.

    `launchers` are all known launchers; the launcher's own settings are checked by `set_up`.
    """
    text, key = override.input_line, override.key_or_group
    own = key.startswith(SETTINGS) and not any(part.startswith("_") for part in key.split("."))
    if key != LAUNCHER and not own:
        raise UserError(f"{text}: {_reason(override)}")
    if not sweep:
        raise UserError(f"{text}: Hydra's own settings act on sweeps only; add -m or leave it out")
    if override.is_sweep_override():
        raise UserError(f"{text}: a sweep has one launcher; allowed: one value")
    # A launcher may have free settings, which can only be added.
    added = override.is_add() or override.is_force_add()
    if override.is_delete() or override.package is not None or (added and key == LAUNCHER):
        raise UserError(f"{text}: keys cannot be added, removed or moved; allowed: {ALLOWED}")
    if key == LAUNCHER and not (isinstance(override.value(), str) and override.value() in launchers):
        raise unknown(key, _text(override), launchers)


def set_up(launcher: DictConfig, override: Override) -> None:
    """Change one of the launcher's settings, in place; raises UserError for an unknown name or a wrong value."""
    text, key = override.input_line, override.key_or_group.removeprefix(SETTINGS)
    names = [str(name) for name in launcher if not str(name).startswith("_")]
    if not names:
        raise UserError(f"{text}: this launcher has no settings; allowed: another one, {LAUNCHER}=NAME")
    if key.partition(".")[0] not in names:
        raise unknown(SETTINGS.rstrip("."), key, names)
    refused = _refused(launcher, key, override)
    added = override.is_add() or override.is_force_add()
    try:
        if override.is_add() and OmegaConf.select(launcher, key) is not None:
            raise UserError(f"{text}: it is there already; allowed: {SETTINGS}{key}=VALUE")
        OmegaConf.update(launcher, key, override.value(), merge=True, force_add=added)
        _resolve(launcher, key)
    except OmegaConfBaseException:
        raise refused from None


def _resolve(launcher: DictConfig, key: str) -> None:
    """Replace an interpolation by its value, unless that is known only where the job runs."""
    try:
        OmegaConf.update(launcher, key, OmegaConf.select(launcher, key), merge=False)
    except InterpolationToMissingValueError:
        return


def _reason(override: Override) -> str:
    key = override.key_or_group
    name = key.removeprefix("hydra").lstrip("./").replace("/", ".")
    if key.startswith(_PARAMETERS) and not override.is_delete():
        typed = f"{key.removeprefix(_PARAMETERS)}={_text(override)}"
        return f"the values of a sweep are typed with their key; allowed: {typed}"
    for beginning, reason in _INSTEAD.items():
        if name == beginning or name.startswith(f"{beginning}."):
            return reason
    return f"this setting of Hydra's is kdx's own; allowed: {ALLOWED}"


def _text(override: Override) -> str:
    """The value as it is typed, without the quotes around it."""
    value = override.value()
    return value if isinstance(value, str) else (override.input_line or "").partition("=")[2]


def _refused(launcher: DictConfig, key: str, override: Override) -> UserError:
    """The error for a value that a setting cannot have, with its declared type, if any."""
    top = key.partition(".")[0]
    if isinstance(launcher.get(top), DictConfig):
        return UserError(f"{override.input_line}: {top} has free names; allowed: +{SETTINGS}{top}.NAME=VALUE")
    declared = launcher._get_node(top)._metadata  # pyright: ignore
    kind = _TYPES.get(getattr(declared.ref_type, "__origin__", declared.ref_type), "another value")
    optional = " or null" if declared.optional else ""
    return UserError(f"{SETTINGS}{key}: {format_value(override.value())} is not allowed; allowed: {kind}{optional}")
