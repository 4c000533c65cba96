"""The official files of a data set: found or downloaded, and verified before a byte is decoded."""

import gzip
import hashlib
import http.client
import logging
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from kdx.display import Stage, stage
from kdx.errors import UserError
from kdx.files import write_atomically
from kdx.folders import data_root, download_cache

log = logging.getLogger("kdx.data")

TIMEOUT_SECONDS = 10.0
CHUNK_BYTES = 1 << 16


class DownloadError(Exception):
    """No mirror gave an intact file; the message is the last mirror's reason."""


@dataclass(frozen=True)
class SourceFile:
    """An official file, `name` (ending in .gz), its bytes and md5, and the md5 of what it unpacks to."""

    name: str
    size: int
    md5: str
    unpacked_md5: str

    def accepted(self) -> dict[str, str]:
        """The file names that are accepted for it, packed or unpacked, each with its md5."""
        return {self.name: self.md5, self.name.removesuffix(".gz"): self.unpacked_md5}


@dataclass(frozen=True)
class SourceSet:
    """All files of the data set `name`, where in a data folder they may lie, and who offers them.

    Downloads go to the first of `places`; `mirrors` gives address prefixes and is called only to download.
    """

    name: str
    files: tuple[SourceFile, ...]
    places: tuple[str, ...]
    mirrors: Callable[[], Sequence[str]]

    def key(self) -> str:
        """A hash of the content of all files, the same for packed and unpacked ones."""
        return hashlib.sha256(" ".join(file.unpacked_md5 for file in self.files).encode()).hexdigest()


@dataclass(frozen=True)
class Verified:
    """A file's bytes after its md5 was found right."""

    path: Path
    content: bytes

    def unpacked(self) -> bytes:
        """The bytes without gzip around them."""
        return gzip.decompress(self.content) if self.path.suffix == ".gz" else self.content


def obtain(sources: SourceSet, root: str | None, download: bool) -> dict[str, Verified]:
    """Find every file by its official name below `root` or in kdx's cache, or download what is missing.

    Raises UserError when a file is damaged, or is missing and cannot be downloaded.
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


def _find(sources: SourceSet, file: SourceFile, folder: Path, download: bool) -> Verified | None:
    """The first intact copy; a damaged one is an error, unless another is intact or kdx can replace its own."""
    damaged: list[Path] = []
    bases = dict.fromkeys((folder, download_cache()))
    for base, place, (name, md5) in product(bases, sources.places, file.accepted().items()):
        path = base / place / name
        content = _read(path)
        if content is None:
            continue
        if _md5(content) == md5:
            if base != folder:
                log.info("%s: %s is not in %s; read from %s", sources.name, file.name, folder, path)
            return Verified(path, content)
        log.warning("%s is damaged: its md5 is not the official %s", path, md5)
        damaged.append(path)
    for path in damaged:
        # What kdx downloaded into its own cache it may replace; a file that the user put somewhere it may not.
        if not (download and path.is_relative_to(download_cache())):
            remedy = "delete it and it is downloaded again" if download else "put an intact copy there"
            raise UserError(f"dataset.root: {path} is damaged (its md5 is not the official one); {remedy}")
    return None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"dataset.root: {path} cannot be read: {error.strerror}") from error


def _download(sources: SourceSet, missing: Sequence[SourceFile], folder: Path, allowed: bool) -> dict[str, Verified]:
    target = folder / sources.places[0]
    problem = f"dataset.root: {', '.join(file.name for file in missing)} not found below '{folder}'"
    remedy = f"put them into {target}, or use dataset=digits, which needs no files"
    if not allowed:
        raise UserError(f"{problem} and dataset.download is false; {remedy}")
    fetched: dict[str, Verified] = {}
    done = 0
    with stage(f"download {sources.name} (bytes)", sum(file.size for file in missing)) as progress:
        for file in missing:
            try:
                content = _fetch(sources.mirrors(), file, progress, done)
            except DownloadError as error:
                raise UserError(f"{problem} and could not be downloaded ({error}); {remedy}") from error
            fetched[file.name] = Verified(target / file.name, content)
            _store(fetched[file.name], download_cache() / sources.places[0] / file.name)
            done += file.size
    return fetched


def _store(file: Verified, otherwise: Path) -> None:
    """Write a downloaded file to its path, or to `otherwise` where that folder cannot be written."""
    for path in dict.fromkeys((file.path, otherwise)):
        try:
            write_atomically(path, lambda temporary: temporary.write_bytes(file.content))
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error.strerror)
        else:
            log.info("downloaded %s", path)
            return
    log.warning("%s is kept nowhere and is downloaded again in each run", file.path.name)


def _fetch(mirrors: Sequence[str], file: SourceFile, progress: Stage, done: int) -> bytes:
    """The file's bytes from the first mirror that has them intact; `done` bytes of the stage are behind us."""
    reason = "there is no mirror"
    for mirror in mirrors:
        try:
            content = _fetch_from(mirror + file.name, file.size, progress, done)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error).strip("<>") or type(error).__name__
        else:
            if _md5(content) == file.md5:
                return content
            reason = "what came is damaged"
        log.warning("%s%s could not be downloaded: %s", mirror, file.name, reason)
    raise DownloadError(reason)


def _fetch_from(url: str, size: int, progress: Stage, done: int) -> bytes:
    content = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        # One byte beyond the known size is enough to prove that it is another file.
        while len(content) <= size and (chunk := response.read(min(CHUNK_BYTES, size + 1 - len(content)))):
            content += chunk
            progress.advance(done + min(len(content), size))
    return bytes(content)


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
