"""The ids that name runs, teachers and sweeps: hashes of every setting that can change a result."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kdx.config.networks import NetworkSettings
from kdx.config.registry import Package, package_of
from kdx.config.schema import Config
from kdx.errors import UserError
from kdx.storage.files import sha256_of

# Part of every id: raise it when a change of kdx changes the results of the same settings.
FORMAT = 2
WITHOUT_EFFECT = ("device", "outputs", "force", "sweep")
PLACE_OF_DATA = ("root", "download")
"""The groups, and the settings of a data set, that cannot change a result and so are no part of an id."""
PRECISION = "device.precision"
"""The one setting of `device` that can; all others change float32 rounding at most, and are recorded."""
FLOAT32 = "fp32"
LATER = {"hint": {"standardize": False, "decoupled": False, "beta": 8}}
"""Keys of `method`, by part, that are newer than some results, with their neutral values, which leave ids unchanged."""


def packages_record(config: Config, *groups: str) -> dict[str, str]:
    """`packages` for metrics.json: name, version and source hash of the packages that these groups (or all) use.

    A change of kdx's own code is recorded by FORMAT, that of a package by its source hash. Empty if no package is used.
    """
    code = {
        "dataset": [package_of("kdx.datasets", config.dataset.name)],
        "method": list(_method_packages(config.method)),
    }
    networks: dict[str, NetworkSettings] = {**config.teachers, "student": config.student}
    code |= {key: [package_of("kdx.models", network.family)] for key, network in networks.items()}
    used = {f"{package} ({package.source[:12]})" for key in groups or code for package in code[key] if package}
    return {"packages": ", ".join(sorted(used))} if used else {}


def _method_packages(method: Mapping[str, Any]) -> Iterator[Package | None]:
    """Also of a method within the method, such as that which prunes a chain."""
    yield package_of("kdx.procedures", method.get("procedure", "once"))
    for name in method["parts"]:
        yield package_of("kdx.methods", name)
    for value in method.values():
        if isinstance(value, Mapping) and "parts" in value:
            yield from _method_packages(value)


def run_id(config: Config) -> str:
    """The id of a run, twelve hexadecimal digits: equal for equal experiments, wherever and however they are run."""
    return _digest({**_identity(config), "format": FORMAT})


def teacher_id(config: Config) -> str:
    """The id of the first teacher, which depends only on its own settings, the data set and the precision."""
    identity = _identity(config)
    own = {"teacher": identity["teacher"], "dataset": identity["dataset"]}
    precision = {key: identity[key] for key in ("precision",) if key in identity}
    return _digest({**own, **precision, **packages_record(config, *own), "format": FORMAT})


def sweep_id(configs: Iterable[Config]) -> str:
    """The id of a sweep: equal if its runs are, however they are written, ordered or launched."""
    return _digest({"runs": sorted({run_id(config) for config in configs})})


def changes_result(key: str) -> bool:
    """Whether a setting, or a group, with this dotted key can change a run's result, and so its id."""
    group, _, rest = key.partition(".")
    without = group in WITHOUT_EFFECT or (group == "dataset" and rest in PLACE_OF_DATA) or _is_pace(rest)
    return key == PRECISION or not without


def changes(words: Iterable[str]) -> tuple[str, ...]:
    """Those of the overrides that can change a run's result."""
    return tuple(word for word in words if changes_result(word.partition("=")[0]) and word != f"{PRECISION}={FLOAT32}")


def words_id(words: Iterable[str]) -> str:
    """An id of overrides that several runs have in common, in any order."""
    return _digest({"words": sorted(words)})


def _identity(config: Config) -> dict[str, Any]:
    """The configuration without what cannot change a result, and with checkpoint files replaced by their hashes.

    A field of the configuration with a default is left out at that value, because it is newer than some runs (see
    `Settings`), and so is a key of `method` at its value in `LATER`.
    """
    exclude: dict[str, Any] = dict.fromkeys(WITHOUT_EFFECT, True)
    exclude["dataset"] = dict.fromkeys(PLACE_OF_DATA, True)
    content = config.model_dump(mode="json", exclude=exclude, exclude_defaults=True)
    later = {key: value for part in config.method["parts"] for key, value in LATER.get(part, {}).items()}
    content["method"] = {
        key: value for key, value in content["method"].items() if key not in later or value != later[key]
    }
    for key, network in {**config.teachers, "student": config.student}.items():
        if network.checkpoint is not None:
            content[key]["checkpoint"] = _checkpoint_sha256(key, Path(network.checkpoint))
    if not config.dataset.has_official_checksum:
        # Here, because it imports torch.
        from kdx.data import content_sha256

        content["dataset"]["content"] = content_sha256(config.dataset)
    if config.device.precision != FLOAT32:
        content["precision"] = config.device.precision
    return _canonical({**content, **packages_record(config)})


def _checkpoint_sha256(key: str, checkpoint: Path) -> str:
    if not checkpoint.is_file():
        raise UserError(f"{key}.checkpoint: '{checkpoint}' is not a file; allowed: a .safetensors file or null")
    written = checkpoint.stat()
    return _sha256_of(checkpoint, written.st_mtime_ns, written.st_size)


# A sweep asks for the same file with every job, and half a gigabyte takes a second.
@cache
def _sha256_of(checkpoint: Path, _written_ns: int, _size: int) -> str:
    return sha256_of(checkpoint)


def _canonical(content: Any) -> Any:
    """One spelling for equal values, such as 2 for 2.0, without the checkpoint interval."""
    match content:
        case dict():
            return {key: _canonical(value) for key, value in content.items() if not _is_pace(key)}
        case list():
            return [_canonical(value) for value in content]
        case float() if content.is_integer():
            return int(content)
        case _:
            return content


def _is_pace(key: str) -> bool:
    """Whether the key, without its groups, is the checkpoint interval."""
    return key.rpartition(".")[2] == "checkpoint_seconds"


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
