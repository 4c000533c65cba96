"""Checksums of finished files, so that changed results are never reported: `sha256sum -c checksums.sha256`."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdx.errors import UserError
from kdx.storage.files import sha256_of, write_text

CHECKSUMS = "checksums.sha256"
METRICS = "metrics.json"
# Only files of the folder itself are sealed.
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+)")
FORMAT = 2
"""The format of metrics.json; format 1, which does not name it, had no checksums."""


def seal(folder: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write the hashes of the result files in `folder`, and of `texts`, files that are yet to be written.

    Result files are tables, settings, figures and networks, not checkpoints or logs.
    """
    texts = texts or {}
    suffixes = (".csv", ".json", ".safetensors", ".svg", ".yaml")
    files = [path for path in folder.iterdir() if path.suffix in suffixes and not path.name.startswith("checkpoint")]
    sums = {path.name: sha256_of(path) for path in files if path.name not in texts}
    sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    write_text(folder / CHECKSUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


class WrittenLater(UserError):
    """Results of a later version of kdx, which this version can neither read nor may replace."""


def misfit(folder: Path, metrics: Mapping[str, Any]) -> str | None:
    """The reason why the metrics of `folder`, an intact file, cannot be trusted; None if they can.

    Raises WrittenLater if a later version of kdx wrote them.
    """
    written = metrics.get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise WrittenLater(
            f"run: {folder} was written by a later version of kdx (format {written}, this one reads up to {FORMAT});"
            " update kdx, or choose another folder for outputs"
        )
    return f"{CHECKSUMS} is not there any more" if written > 1 and not (folder / CHECKSUMS).exists() else None


def unseal(folder: Path) -> None:
    """Remove the hashes before files are written again."""
    (folder / CHECKSUMS).unlink(missing_ok=True)


def flaw(path: Path) -> str | None:
    """The reason why a file is damaged; None if it is not.

    A file without a hash, as of an earlier version of kdx, counts as intact.
    """
    sums = _sums(path.parent)
    if sums is None:
        return f"{CHECKSUMS} beside it is no list of checksums"
    return _change(path, sums[path.name]) if path.name in sums else None


def _change(path: Path, expected: str) -> str | None:
    try:
        return None if sha256_of(path) == expected else "its content is not what was written"
    except FileNotFoundError:
        return "it is not there any more"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def damage(folder: Path) -> str | None:
    """The first file in `folder` that is missing or changed, with the reason; None if all are intact."""
    sums = _sums(folder)
    if sums is None:
        return f"{folder / CHECKSUMS} is damaged: it is no list of checksums"
    for name, expected in sums.items():
        reason = _change(folder / name, expected)
        if reason:
            return f"{folder / name} is damaged: {reason}"
    return None


def _sums(folder: Path) -> dict[str, str] | None:
    """The checksums by file name, empty if there are none, None if the file of checksums is damaged."""
    try:
        text = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    if not lines or not text.endswith("\n") or None in lines:
        return None
    return {found[2]: found[1] for found in lines if found}
