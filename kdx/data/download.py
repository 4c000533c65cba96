"""The official files of a data set: found or downloaded, and verified by md5 before anything is decoded."""

import gzip
import hashlib
import http.client
import io
import logging
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from kdx.console import ProgressBar, progress_bar
from kdx.errors import UserError, one_line
from kdx.storage.files import write_atomically
from kdx.storage.paths import data_root, download_cache

log = logging.getLogger(__name__)


TIMEOUT_SECONDS = 10.0
CHUNK_BYTES = 1 << 16


class DownloadError(Exception):
    """No mirror had an intact file; the message is the last mirror's reason."""


@dataclass(frozen=True)
class SourceFile:
    """An official file: `name`, size in bytes, md5 and, for .gz and .tar.gz, its `members` with an md5 each.

    The unpacked members are accepted instead of the file, under their names.
    """

    name: str
    size: int
    md5: str
    members: Mapping[str, str] = field(default_factory=dict)

    def forms(self) -> list[dict[str, str]]:
        """The accepted sets of files, packed and unpacked, each as md5 by name."""
        return [{self.name: self.md5}, dict(self.members)] if self.members else [{self.name: self.md5}]


@dataclass(frozen=True)
class SourceSet:
    """All files of the data set `name`, the subfolders where they may lie, and the mirrors that offer them.

    Downloads go to the first of `places`; `mirrors` returns URL prefixes and is called only to download.
    """

    name: str
    files: tuple[SourceFile, ...]
    places: tuple[str, ...]
    mirrors: Callable[[], Sequence[str]]

    def key(self) -> str:
        """A hash of the content of all files, the same for packed and unpacked ones."""
        contents = " ".join(md5 for file in self.files for md5 in file.forms()[-1].values())
        return hashlib.sha256(contents.encode()).hexdigest()


@dataclass(frozen=True)
class LocalFile:
    """An official file whose md5 was verified: the paths of the file itself or of its unpacked members.

    `content` holds a download that could not be written to any folder.
    """

    paths: tuple[Path, ...]
    content: bytearray | None = None

    def open(self) -> BinaryIO:
        """The file, opened for reading in binary mode; only if it is a single file."""
        (path,) = self.paths
        return path.open("rb") if self.content is None else io.BytesIO(self.content)

    def unpacked(self) -> Iterator[tuple[str, bytes]]:
        """The name (without folders) and the bytes of each file in it.

        Raises UserError if it cannot be unpacked, for instance because it has changed since it was verified.
        """
        try:
            yield from self._unpacked()
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise UserError(f"dataset.root: {self.paths[0]} cannot be unpacked ({one_line(error)})") from error

    def _unpacked(self) -> Iterator[tuple[str, bytes]]:
        if self.paths[0].name.endswith(".tar.gz"):
            with self.open() as packed, tarfile.open(fileobj=packed, mode="r:gz") as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    if file is not None:
                        yield PurePosixPath(member.name).name, file.read()
        elif self.paths[0].suffix == ".gz":
            with self.open() as packed:
                yield self.paths[0].stem, gzip.decompress(packed.read())
        else:
            for path in self.paths:
                yield path.name, path.read_bytes()


def fetch_files(sources: SourceSet, root: str | None, download: bool) -> dict[str, LocalFile]:
    """Find every file by its official name below `root` or in kdx's cache; download what is missing.

    Raises UserError if a file is damaged, or is missing and cannot be downloaded.
    """
    folder = data_root(root)
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"dataset.root: '{folder}' is not a folder")
    except OSError as error:
        raise UserError(f"dataset.root: '{folder}' cannot be read: {error.strerror}") from error
    found = {file.name: _find(sources, file, folder, download) for file in sources.files}
    missing = [file for file in sources.files if found[file.name] is None]
    fetched = _download(sources, missing, folder, download) if missing else {}
    return {name: verified or fetched[name] for name, verified in found.items()}


def _find(sources: SourceSet, file: SourceFile, folder: Path, download: bool) -> LocalFile | None:
    """The first intact copy; a damaged one is an error, unless another is intact or kdx can replace its own."""
    damaged: list[Path] = []
    bases = dict.fromkeys((folder, download_cache()))
    for base, place, form in product(bases, sources.places, file.forms()):
        official = {base / place / name: md5 for name, md5 in form.items()}
        actual = {path: _md5_of(path) for path in official}
        if actual == official:
            if base != folder:
                log.info("%s: %s is not in %s; read from %s", sources.name, file.name, folder, base / place)
            return LocalFile(tuple(official))
        for path, md5 in actual.items():
            if md5 is not None and md5 != official[path]:
                log.warning("%s is damaged: its md5 is not the official %s", path, official[path])
                damaged.append(path)
    for path in damaged:
        # kdx may replace what it downloaded into its own cache, but not the user's files.
        if not (download and path.is_relative_to(download_cache())):
            remedy = "delete it and it is downloaded again" if download else "put an intact copy there"
            raise UserError(f"dataset.root: {path} is damaged (its md5 is not the official one); {remedy}")
    return None


def _half_there(sources: SourceSet, file: SourceFile, folder: Path) -> str:
    """The members that are missing in a folder that has others, as a message."""
    for place in sources.places:
        absent = [PurePosixPath(name).name for name in file.members if not (folder / place / name).exists()]
        if 0 < len(absent) < len(file.members):
            return f" (of what it unpacks to, {', '.join(absent)} is not there)"
    return ""


def _md5_of(path: Path) -> str | None:
    """The file's md5, or None where there is no file; chunk by chunk, since a file may be larger than the memory."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"dataset.root: {path} cannot be read: {error.strerror}") from error


def _download(sources: SourceSet, missing: Sequence[SourceFile], folder: Path, allowed: bool) -> dict[str, LocalFile]:
    target = folder / sources.places[0]
    names = ", ".join(file.name + _half_there(sources, file, folder) for file in missing)
    problem = f"dataset.root: {names} not found below '{folder}'"
    remedy = f"put them into {target}, or use dataset=digits, which needs no files"
    if not allowed:
        raise UserError(f"{problem} and dataset.download is false; {remedy}")
    fetched: dict[str, LocalFile] = {}
    done = 0
    with progress_bar(f"download {sources.name} (bytes)", sum(file.size for file in missing)) as progress:
        for file in missing:
            try:
                content = _fetch(sources.mirrors(), file, progress, done)
            except DownloadError as error:
                raise UserError(f"{problem} and could not be downloaded ({error}); {remedy}") from error
            otherwise = download_cache() / sources.places[0] / file.name
            fetched[file.name] = _stored(content, target / file.name, otherwise)
            done += file.size
    return fetched


def _stored(content: bytearray, wanted: Path, otherwise: Path) -> LocalFile:
    """A download, written to the path `wanted`, or to `otherwise` if that folder is not writable."""
    for path in dict.fromkeys((wanted, otherwise)):
        try:
            write_atomically(path, lambda temporary: temporary.write_bytes(content))
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error.strerror)
        else:
            log.info("downloaded %s", path)
            return LocalFile((path,))
    log.warning("%s is kept nowhere and is downloaded again in each run", wanted.name)
    return LocalFile((wanted,), content)


def _fetch(mirrors: Sequence[str], file: SourceFile, progress: ProgressBar, done: int) -> bytearray:
    """The file's bytes from the first mirror that has them intact; `done` bytes of the stage were loaded before."""
    reason = "there is no mirror"
    for mirror in mirrors:
        try:
            content = _fetch_from(mirror + file.name, file.size, progress, done)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error).strip("<>") or type(error).__name__
        else:
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == file.md5:
                return content
            reason = "what came is damaged"
        log.warning("%s%s could not be downloaded: %s", mirror, file.name, reason)
    raise DownloadError(reason)


def _fetch_from(url: str, size: int, progress: ProgressBar, done: int) -> bytearray:
    content = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        # One byte beyond the known size is enough to prove that it is another file.
        while len(content) <= size and (chunk := response.read(min(CHUNK_BYTES, size + 1 - len(content)))):
            content += chunk
            progress.advance(done + min(len(content), size))
    return content
