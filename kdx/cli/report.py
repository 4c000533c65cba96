"""`kdx report`: one HTML page of everything in an outputs folder."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from kdx.cli.arguments import outputs_folder, words_and_settings
from kdx.errors import UserError
from kdx.report.html import page_of
from kdx.report.outputs import Found, read_outputs
from kdx.storage.files import write_text

HELP = """\
usage: kdx report [OUTPUTS] [file=PATH]

Write every reproduced table and figure, every sweep and every finished run of the folder OUTPUTS (by default
$KDX_OUTPUTS, else outputs) as one HTML page, which needs no other file and no network.

file       the page; OUTPUTS/report.html by default"""
DAMAGES_SHOWN = 3


def main(words: Sequence[str]) -> int:
    """`kdx report`: write the page, print its path, and return the exit code."""
    print(report(words))
    return 0


def report(words: Sequence[str]) -> Path:
    """Write the page and return its path; raises UserError for wrong arguments, and for a folder without results.

    Damaged files are left out and named, in the page and in one line on stderr.
    """
    folders, settings = words_and_settings(words, ("file",))
    if len(folders) > 1:
        raise UserError(f"report: '{folders[1]}' is a second folder; allowed: one")
    outputs = Path(folders[0]) if folders else outputs_folder()
    path = Path(settings.get("file") or outputs / "report.html")
    if path.is_dir():
        raise UserError(f"file: '{path}' is a folder; allowed: a file")
    found = read_outputs(outputs)
    if found.is_empty:
        what = "holds no results" if outputs.is_dir() else "is not a folder"
        raise UserError(
            f"report: '{outputs}' {what}; allowed: a folder with results, which kdx train, kdx train -m and"
            " kdx reproduce make"
        )
    if found.damages:
        print(_warning(found), file=sys.stderr)
    write_text(path, page_of(found, datetime.now(UTC)))
    return path


def _warning(found: Found) -> str:
    named = [str(damage.path) for damage in found.damages]
    more = f" and {len(named) - DAMAGES_SHOWN} more" if len(named) > DAMAGES_SHOWN else ""
    return f"kdx: damaged files are left out, the page says why: {', '.join(named[:DAMAGES_SHOWN])}{more}"
