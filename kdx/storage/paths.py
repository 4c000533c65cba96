"""The folders of data sets, of downloads and of kdx's cache."""

import os
from pathlib import Path

from kdx.errors import UserError


def user_cache() -> Path:
    """kdx's folder in the user's cache: `$XDG_CACHE_HOME/kdx`, else `~/.cache/kdx`.

    Raises UserError when there is neither such a variable nor a home folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification tells programs to ignore a relative (or empty) path.
    return (base if base.is_absolute() else _expanded("~/.cache")) / "kdx"


def download_cache() -> Path:
    """The folder for downloads if the user has chosen none."""
    return user_cache() / "data"


def data_root(root: str | None) -> Path:
    """The folder of data sets: `root`, else the environment variable KDX_DATA, else `download_cache()`."""
    chosen = root or os.environ.get("KDX_DATA")
    return _expanded(chosen).absolute() if chosen else download_cache()


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # a container's user without a home folder
        raise UserError(f"'{path}': there is no such home folder; set XDG_CACHE_HOME or name another folder") from error
