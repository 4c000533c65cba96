"""Suppresses warnings that torch gives about its own code."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_torchs_own_warnings() -> Iterator[None]:
    """Hide what torch 2.11 warns of when it exports (its use of LeafSpec) and reads archives (a buffer)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        yield
