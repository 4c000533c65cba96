"""Files of results as validated records; whatever does not fit is a ValueError or an OSError, for `reason` to tell."""

import csv
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kdx.errors import one_line

# What reading a damaged file may raise: UserError, pydantic's, JSON's and Unicode's errors are ValueErrors.
UNREADABLE = (OSError, ValueError, csv.Error)


class Record(BaseModel):
    """A part of a file of results; what a later version adds is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


R = TypeVar("R", bound=BaseModel)


def read_record(path: Path, kind: type[R]) -> R:
    """The content of a JSON file."""
    return kind.model_validate_json(path.read_bytes())


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """The lines of a CSV file; an empty cell has its field's default."""
    return [kind.model_validate({key: text for key, text in line.items() if text != ""}) for line in read_lines(path)]


def read_lines(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file as texts, each with as many cells as the header."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, strict=True))
    for number, line in enumerate(lines, 1):
        if None in line or None in line.values():
            raise ValueError(f"line {number} below the header has not as many cells as it")
    return lines


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in one line without its path."""
    match error:
        case OSError(strerror=str(text)):
            return text
        case ValidationError():
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            return f"{where}: {first['msg']}".removeprefix(": ")
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case _:
            return one_line(error)
