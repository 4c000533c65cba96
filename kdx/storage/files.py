"""Atomic writing of files, so that they are either complete or absent, and their hashes."""

import csv
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


MODULES = (".py", ".so", ".pyd")
"""The suffixes of files that Python imports."""


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if they are missing; raises OSError, which names the folder."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        # The parent exists, so this is a file system that allows no new folders, such as /proc.
        raise PermissionError(errno.EPERM, "a folder cannot be made here", str(path)) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it to disk and rename it to `path`.

    Errors of the file system are raised as OSError with the name `path`.
    """
    try:
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        _replace(path, Path(name), write)
    except OSError as error:
        # The error of a full disk names no file, and the temporary file's name would not help.
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, temporary: Path, write: Callable[[Path], object]) -> None:
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; results are shared like any other file of the user.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON to `path` atomically; NaN and infinity are refused with ValueError."""
    write_text(path, json_text(content))


def json_text(content: object) -> str:
    """`content` as indented JSON; NaN and infinity are refused with ValueError."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with a header line to `path` atomically; None is an empty cell, ValueError for unknown columns."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def write_rows(path: Path, row_type: "type[DataclassInstance]", rows: "Iterable[DataclassInstance]") -> None:
    """Write dataclass instances as a table, one field per column, atomically."""
    write_csv(path, [field.name for field in fields(row_type)], map(asdict, rows))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_sha256(places: Iterable[Path]) -> str:
    """SHA-256, in hexadecimal, of the names and contents of these modules, and of all modules in these folders."""
    digest = hashlib.sha256()
    for place in places:
        modules = [place] if place.is_file() else [path for end in MODULES for path in place.rglob(f"*{end}")]
        for module in sorted(modules):
            digest.update(f"{module.relative_to(place).as_posix()} {sha256_of(module)}\n".encode())
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
