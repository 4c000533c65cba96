"""The tables as they are declared in `conf/paper/<paper>/<table>.yaml`."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, model_validator

from kdx.errors import UserError, unknown
from kdx.explain import settings_from
from kdx.groups import conf_folder
from kdx.reproduce.published import Published, select
from kdx.settings import Settings

Text = Annotated[str, Field(min_length=1)]


class Column(Settings):
    """A figure of every row: a key of metrics.json, or `sparsity_percent.LAYER` of layers.csv, and where it is printed.

    `better` says which direction is an improvement; null is for what describes a network.
    """

    title: Text
    better: Literal["lower", "higher"] | None
    published: Published | None


class Row(Settings):
    """A network of the table: the words of `kdx train` that make it, and what selects its published numbers.

    `of` is teacher where the row is the teacher that those words train, and network where nothing is trained.
    """

    train: list[str]
    of: Literal["student", "teacher", "network"]
    published: dict[str, str]


class Claim(Settings):
    """A statement of the paper that runs support or contradict: a row's figure against another row's, or a number."""

    text: Text
    column: Text
    row: Text
    relation: Literal["lower", "higher"]
    than: str | float


class PaperTable(Settings):
    """A table of a paper, and how kdx makes it again.

    `dataset` and `common` are words of every row; in a smoke run `smoke` comes last and digits are the data set.
    """

    name: Text
    title: Text
    published: Text
    dataset: list[str]
    common: list[str]
    smoke: list[str]
    columns: dict[str, Column]
    rows: dict[str, Row]
    claims: list[Claim]
    notes: list[str]

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for claim in self.claims:
            rows = [claim.row, claim.than] if isinstance(claim.than, str) else [claim.row]
            missing = [row for row in rows if row not in self.rows]
            if missing or claim.column not in self.columns:
                raise ValueError(f"claim '{claim.text}' speaks of {missing or claim.column}, which the table lacks")
        return self

    def only(self, pattern: str) -> "PaperTable":
        """The table with the rows whose label matches `pattern` (* and ?) and the claims about them.

        Raises UserError where no row does.
        """
        rows = {label: row for label, row in self.rows.items() if fnmatchcase(label, pattern)}
        if not rows:
            raise unknown(f"rows of {self.name}", pattern, self.rows)
        claims = [claim for claim in self.claims if claim.row in rows and claim.than not in self.rows.keys() - rows]
        return self.model_copy(update={"rows": rows, "claims": claims})

    def printed(self, row: str, column: str) -> str | None:
        """The published number of a cell as it is printed (scaled to the column's unit), or None."""
        where = self.columns[column].published
        return None if where is None else select(self.published, where, self.rows[row].published)


def table_names() -> list[str]:
    """All tables, as paper/table."""
    folder = conf_folder() / "paper"
    files = (file for file in folder.glob("*/*.yaml"))
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def named(name: str) -> list[str]:
    """The tables that `name` means: one table, or a whole paper; UserError for another name."""
    names = table_names()
    found = [each for each in names if name in (each, each.partition("/")[0])]
    if not found:
        raise unknown("reproduce", name, [*names, *{each.partition("/")[0] for each in names}])
    return found


def load_table(name: str) -> PaperTable:
    """Read one table; UserError where its file does not fit the schema."""
    file = Path(conf_folder(), "paper", f"{name}.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{file}: it holds no table")
    rows = {
        label: {"of": "student", "published": {}, **row} if isinstance(row, dict) else row
        for label, row in content.get("rows", {}).items()
    }
    columns = {
        key: {"better": None, "published": None, **column} if isinstance(column, dict) else column
        for key, column in content.get("columns", {}).items()
    }
    lists = {key: content.get(key, []) for key in ("common", "smoke", "claims", "notes")}
    return settings_from(PaperTable, content | lists | {"name": name, "rows": rows, "columns": columns}, str(file))
