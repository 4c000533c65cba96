"""Locks beside files and folders, so that one process at a time works on them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdx.storage.files import make_folder

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock `path` against other processes on all machines that see it; yield whether the lock is held.

    Without `wait` it is not held if another process has it. The lock of a process that died is released by the system,
    or, on a file system without locks, by the next process on the same machine.
    """
    make_folder(path.parent)
    # Beside the folder, so that removing the folder does not remove its lock.
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
        # Without file locks, the presence of a file is the lock.
        warnings.filterwarnings("ignore", "flock not supported", UserWarning)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                return False
            log.warning("waiting for another process that works in %s", path)
            lock.acquire()
    return True
