"""The names in a configuration and the classes they stand for: kdx's own and those of installed packages.

A package registers a class as an entry point (packaging.python.org, "Entry points"), and the folder `conf` beside its
code has its YAML choices. Classes are imported when they are used, so that `kdx train --help` needs neither torch nor a
package that works.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

from kdx.errors import UserError, one_line, unknown
from kdx.storage.files import source_sha256

T = TypeVar("T")

GROUPS = ("kdx.datasets", "kdx.models", "kdx.methods", "kdx.procedures")
"""The groups of entry points; each has its `Registry` beside the class that all its names stand for."""


@dataclass(frozen=True)
class Package:
    """An installed package that registers something: its version, modules, and folder of YAML choices, if any."""

    name: str
    version: str
    conf: Path | None
    places: tuple[Path, ...]

    @cached_property
    def source(self) -> str:
        """SHA-256, in hexadecimal, of its modules, so that editing a package in place changes the ids of its runs.

        Read once, since what a process has imported does not change.
        """
        return source_sha256(self.places)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class _Entry:
    """An entry point and its package; None for kdx's own."""

    point: EntryPoint
    package: Package | None = None


class Registry(Generic[T]):
    """The names of one kind, each of which stands for a class.

    `group` is that of the packages' entry points, and `base` the class that theirs must be derived from. `own` has
    kdx's names with their classes, written as entry points are: module:class.
    """

    def __init__(self, group: str, base: type[T], own: Mapping[str, str]) -> None:
        self.group, self.base = group, base
        self.own = {name: _Entry(EntryPoint(name, value, group)) for name, value in own.items()}

    def names(self) -> list[str]:
        """All names; raises UserError if packages register the same name."""
        return list(self._entries())

    def find(self, name: object, key: str) -> type[T]:
        """The class that `name`, the value of `key`, stands for.

        Raises UserError for an unknown name, and for a package that cannot be imported or registers something else.
        """
        entries = self._entries()
        if not isinstance(name, str) or name not in entries:
            raise unknown(key, name, entries)
        point, package = entries[name].point, entries[name].package
        if package is None:
            # An import error in kdx's own code is no mistake of the user's.
            return point.load()
        source = f"{key}: '{name}' is {point.value} of the package {package}"
        try:
            kind = point.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{source}, which cannot be imported: {reason}; repair or uninstall it") from error
        if not (isinstance(kind, type) and issubclass(kind, self.base)):
            raise UserError(
                f"{source}; allowed: a class that is derived from {self.base.__module__}:{self.base.__name__}"
            )
        return kind

    def _entries(self) -> dict[str, _Entry]:
        found = dict(self.own)
        for entry in _registered():
            if entry.point.group == self.group:
                other = found.setdefault(entry.point.name, entry)
                if other is not entry:
                    raise UserError(
                        f"package {entry.package}: it registers '{entry.point.name}' in {self.group}, which is a name"
                        f" of {other.package or 'kdx'}; uninstall one of them"
                    )
        return found


def package_of(group: str, name: str) -> Package | None:
    """The package that registers `name` in a group of entry points; None for kdx's own and those that nobody has."""
    points = (entry for entry in _registered() if (entry.point.group, entry.point.name) == (group, name))
    return next((entry.package for entry in points), None)


def packages() -> list[Package]:
    """The installed packages that register something, by name; raises UserError for a wrong registration."""
    return sorted({entry.package for entry in _registered() if entry.package}, key=str)


def _registered() -> tuple[_Entry, ...]:
    return _of_packages(tuple(sys.path))


# Cached by sys.path, on which the installed packages depend.
@cache
def _of_packages(path: tuple[str, ...]) -> tuple[_Entry, ...]:
    groups = sorted(group for group in entry_points().groups if group.startswith("kdx."))
    return tuple(_Entry(point, _package(point)) for group in groups for point in entry_points(group=group))


def _package(point: EntryPoint) -> Package:
    assert point.dist is not None, "an installed entry point knows its distribution"
    name, version = point.dist.name, point.dist.version
    if point.group not in GROUPS:
        raise unknown(f"package {name} {version}: the group of the entry point '{point.name}'", point.group, GROUPS)
    top, *below = point.module.split(".")
    spec = find_spec(top)
    if spec is None:
        raise UserError(f"package {name} {version}: its module {top} is not there; install it again or uninstall it")
    locations = list(spec.submodule_search_locations or ())
    places = tuple(map(Path, locations or filter(None, [spec.origin])))
    return Package(name, version, next(_conf_folders(locations, below), None), places)


def _conf_folders(locations: Sequence[str], below: Sequence[str]) -> Iterator[Path]:
    """The existing folders `conf` beside a module and above it, up to its top-level package."""
    for depth in range(len(below), -1, -1):
        for location in locations:
            folder = Path(location, *below[:depth], "conf")
            if folder.is_dir():
                yield folder
