"""The papers' published numbers, as CSV files of the package."""

import csv
from collections.abc import Mapping
from decimal import Decimal
from functools import cache

from pydantic import Field

from kdx.config.base import Settings
from kdx.config.groups import conf_folder


class Published(Settings):
    """Where a column's published numbers are: in column `value` of the CSV's rows whose cells equal `where`.

    The CSV is the table's own, or `file`. The number is `offset` + `scale` times the printed one: an accuracy becomes
    an error in percent by 100 and -100.
    """

    file: str | None = None
    where: dict[str, str] = Field(default_factory=dict)
    value: str = "value"
    scale: float = 1.0
    offset: float = 0.0


@cache
def read_published(name: str) -> tuple[dict[str, str], ...]:
    """The rows of one CSV file of published numbers, every cell as it is printed."""
    path = conf_folder() / "paper" / "published" / f"{name}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def select(
    name: str, published: Published, row: Mapping[str, str], instead: Mapping[str, str] | None = None
) -> str | None:
    """The published number of one cell as text, with its printed decimals; None if the paper prints none for this row.

    `row` adds conditions to the column's; `instead` names the column of the file that has this row's numbers. Raises
    ValueError if several numbers match, or the file has no such column.
    """
    if not row:
        return None
    where = {**published.where, **row}
    column = (instead or {}).get(published.value, published.value)
    lines = read_published(name)
    if not {*where, column} <= lines[0].keys():
        raise ValueError(f"{name}.csv lacks one of the columns {', '.join([*where, column])}")
    found = [line[column] for line in lines if all(line[key] == value for key, value in where.items())]
    if len(found) > 1:
        raise ValueError(f"{name}.csv has {len(found)} numbers for {where}")
    if not found or not found[0]:
        return None
    return converted(found[0], published.scale, published.offset)


def converted(text: str, scale: float, offset: float = 0.0) -> str:
    """`offset` plus the printed number times `scale`, a power of ten, with the digits that were printed.

    0.0097 times 100 is 0.97, and 0.0090 is 0.90: what was printed there is known to half of its last digit.
    """
    if (scale, offset) == (1, 0):
        return text
    number, factor = Decimal(text), Decimal(str(scale)).normalize()
    last = Decimal(1).scaleb(min(0, exponent_of(number) + factor.adjusted()))
    return f"{(Decimal(str(offset)) + number * factor).quantize(last):f}"


def exponent_of(number: Decimal) -> int:
    """The power of ten of the last printed digit: -2 for 1.88."""
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "published numbers are finite"
    return exponent
