"""Tables of measurements as CSV files: one dataclass field per column."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from kdx.files import write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_rows(path: Path, row_type: "type[DataclassInstance]", rows: "Sequence[DataclassInstance]") -> None:
    """Write `rows` of dataclass `row_type` to `path` atomically; without rows the file holds the header alone."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(row_type)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)

    write_atomically(path, write)
