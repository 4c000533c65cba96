"""The groups of `conf/` and their choices, read from the folder without Hydra."""

from dataclasses import dataclass
from pathlib import Path

import yaml

NONE = "none"


@dataclass(frozen=True)
class Group:
    """A group of settings, the choice that holds when none is made, and each choice with its one-line description.

    `folder` is where its choices lie; several groups may share one (`teacher2` chooses from `teacher`).
    """

    name: str
    folder: str
    default: str
    choices: dict[str, str]

    @property
    def hydra_name(self) -> str:
        """What Hydra calls the group."""
        return self.name if self.name == self.folder else f"{self.folder}@{self.name}"


def conf_folder() -> Path:
    """The folder of the YAML groups: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def load_groups() -> dict[str, Group]:
    """The groups that a user may choose from: those in the defaults of `config.yaml`, in their order there."""
    folder = conf_folder()
    defaults = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {name: choice for entry in defaults if isinstance(entry, dict) for name, choice in entry.items()}
    groups = {}
    for entry, choice in chosen.items():
        if not entry.startswith("override "):
            source, _, name = entry.rpartition("@")
            source = source or name
            groups[name] = Group(name, source, choice, _choices(folder / source, optional=choice == NONE))
    return groups


def _choices(folder: Path, *, optional: bool) -> dict[str, str]:
    # A leading underscore marks what choices share; only where nothing is chosen by default may nothing be chosen.
    files = (file for file in folder.rglob("*.yaml") if not file.name.startswith("_"))
    choices = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    if not optional:
        choices.pop(NONE, None)
    return {name: _description(choices[name]) for name in sorted(choices, key=lambda name: (name.count("/"), name))}


def _description(file: Path) -> str:
    """The file's first comment, unless it speaks to Hydra."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").rstrip()
    return ""
