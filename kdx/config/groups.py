"""The groups of `conf/` and their choices, kdx's own and those of installed packages, read without Hydra."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

import kdx
from kdx.config.registry import Package, packages
from kdx.errors import UserError

NONE = "none"


@dataclass(frozen=True)
class Choice:
    """One choice of a group: its one-line description, and the package it comes from, None for kdx itself."""

    description: str
    package: Package | None


@dataclass(frozen=True)
class Group:
    """A group of settings: its default choice and all choices.

    `folder` holds its choices; several groups may share one (`teacher2` has the choices of `teacher`).
    """

    name: str
    folder: str
    default: str
    choices: dict[str, Choice]

    @property
    def hydra_name(self) -> str:
        """The group's name in Hydra's overrides."""
        return self.name if self.name == self.folder else f"{self.folder}@{self.name}"


def conf_folder() -> Path:
    """The folder of the YAML groups: inside the installed package, or beside it in a checkout."""
    package = Path(kdx.__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def package_folders() -> list[Path]:
    """The folders of YAML groups that installed packages add."""
    return [package.conf for package in packages() if package.conf]


def load_groups() -> Mapping[str, Group]:
    """The groups that a user can choose from: those in the defaults of `config.yaml`, in that order.

    Optional groups there follow from other choices, and are left out. Raises UserError if a package has a file under a
    name that is taken.
    """
    return _groups(conf_folder(), tuple(packages()))


# Cached, since a sweep needs them for every override of every job.
@cache
def _groups(own: Path, others: tuple[Package, ...]) -> Mapping[str, Group]:
    files = _files(own, others)
    defaults = yaml.safe_load((own / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {name: choice for entry in defaults if isinstance(entry, dict) for name, choice in entry.items()}
    groups = {}
    for entry, choice in chosen.items():
        if not entry.startswith(("override ", "optional ")):
            source, _, name = entry.rpartition("@")
            source = source or name
            groups[name] = Group(name, source, choice, _choices(files, source, optional=choice == NONE))
    return groups


def is_written(key: str) -> bool:
    """Whether the last part of the key is a key in any YAML file; if not, no choice can have it."""
    last = re.compile(rf"\b{re.escape(key.rpartition('.')[2])}\s*:")
    return any(
        last.search(file.path.read_text(encoding="utf-8")) for file in _files(conf_folder(), packages()).values()
    )


@dataclass(frozen=True)
class _File:
    """A YAML file, and the package it comes from."""

    path: Path
    package: Package | None


def _files(own: Path, others: Sequence[Package]) -> dict[str, _File]:
    """Every YAML file by its path below the folder of groups, without its suffix.

    Raises UserError for two files with one name, of which Hydra would read only the first.
    """
    files: dict[str, _File] = {}
    for package, folder in [(None, own), *((package, package.conf) for package in others)]:
        for path in sorted(folder.rglob("*.yaml")) if folder else ():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in files:
                raise UserError(
                    f"package {package}: its conf/{name}.yaml is a name of {files[name].package or 'kdx'};"
                    " uninstall one of them"
                )
            files[name] = _File(path, package)
    return files


def _choices(files: dict[str, _File], folder: str, *, optional: bool) -> dict[str, Choice]:
    # A leading underscore marks what choices share; only where nothing is chosen by default may nothing be chosen.
    found = {
        name.removeprefix(f"{folder}/"): file
        for name, file in files.items()
        if name.startswith(f"{folder}/") and not file.path.name.startswith("_")
    }
    if not optional:
        found.pop(NONE, None)
    names = sorted(found, key=lambda name: (name.count("/"), name))
    return {name: Choice(_description(found[name].path), found[name].package) for name in names}


def _description(file: Path) -> str:
    """The file's first comment, unless it is a directive to Hydra."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").rstrip()
    return ""
