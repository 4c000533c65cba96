"""Result files read as validated records; a file that does not fit raises Damaged."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kdx import seal
from kdx.errors import one_line


class Damaged(ValueError):
    """A file is missing, truncated or has wrong content; the message is the reason, without the path."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(why)
        self.path = path


class Record(BaseModel):
    """A part of a result file; unknown fields, as of a later version, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


R = TypeVar("R", bound=BaseModel)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Check the file's hash, and turn any error within the context into Damaged."""
    reason = seal.flaw(path)
    if reason:
        raise Damaged(path, reason)
    try:
        yield
    except Damaged:
        raise
    # UserError, pydantic's, JSON's and Unicode's errors are ValueErrors.
    except (OSError, ValueError, csv.Error) as error:
        raise Damaged(path, _why(error)) from error


def read_record(path: Path, kind: type[R]) -> R:
    """The content of a JSON file as a record; raises Damaged."""
    with reading(path):
        return kind.model_validate_json(path.read_bytes())


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """The rows of a CSV file as records; an empty cell has its field's default; raises Damaged."""
    required = [key for key, field in kind.model_fields.items() if field.is_required()]
    with reading(path):
        return [
            kind.model_validate({key: text for key, text in line.items() if text != ""})
            for line in read_lines(path, required)
        ]


def read_lines(path: Path, required: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file as texts; raises Damaged if a `required` column or a cell is missing."""
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file, strict=True)
        if not table.fieldnames:
            raise ValueError("it has no header")
        missing = set(required).difference(table.fieldnames)
        if missing:
            raise ValueError(f"it lacks the columns {', '.join(sorted(missing))}")
        lines = list(table)
        for number, line in enumerate(lines, 1):
            if None in line or None in line.values():
                raise ValueError(f"line {number} below the header has not as many cells as it")
        return lines


def _why(error: BaseException) -> str:
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
