"""What one process does at a time: locks beside files and folders."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdx.files import make_folder

log = logging.getLogger(__name__)


@contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold `path` against other processes of all machines that see it, and give whether it is held.

    Without `wait` it is not where another process holds it. The system releases the lock of a process that died; on a
    disk that knows no locks the next one of the same machine does.
    """
    make_folder(path.parent)
    # Beside it, so that removing a folder leaves its lock alone.
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    if not _taken(lock, path, wait=wait):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _taken(lock: FileLock, path: Path, *, wait: bool) -> bool:
    with warnings.catch_warnings():
        # A lock by a file's presence serves as well.
        warnings.filterwarnings("ignore", "flock not supported", UserWarning)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                return False
            log.warning("waiting for another process that works in %s", path)
            lock.acquire()
    return True
