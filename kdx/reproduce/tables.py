"""The papers' tables, as declared in `conf/paper/<paper>/<table>.yaml`."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import Field, model_validator

from kdx.config.base import Settings
from kdx.config.groups import conf_folder
from kdx.config.validation import settings_from
from kdx.errors import UserError, unknown
from kdx.reproduce.figures import Figure
from kdx.reproduce.published import Published, read_published, select

Value = TypeVar("Value")
Text = Annotated[str, Field(min_length=1)]
Of = Literal["student", "teacher", "network", "generation", "pruned", "printed"]


class Column(Settings):
    """A figure of every row, a key of metrics.json or `sparsity_percent.LAYER`, and the place of its published numbers.

    `better` is the direction of improvement; null for figures that only describe a network. `exact` figures follow from
    the networks alone: one run suffices, and no test is needed.
    """

    title: Text
    better: Literal["lower", "higher"] | None = None
    exact: bool = False
    published: Published | None = None


class Part(Settings):
    """What an entry of a grid's axis adds to its rows; see `Row`. `published: null` means that none is printed."""

    train: list[str] = Field(default_factory=list)
    smoke: list[str] = Field(default_factory=list)
    of: Of | None = None
    generation: Annotated[int, Field(ge=0)] | None = None
    published: dict[str, str] | None = Field(default_factory=dict)
    instead: dict[str, str] = Field(default_factory=dict)
    x: float | None = None


class Row(Settings):
    """A network of the table: the overrides of `kdx train` that make it, and what selects its published numbers.

    `instead` maps columns of the published file to those that have this row's numbers, and `elsewhere` maps columns to
    another place of their number. In the columns of `unlike` the printed number is of something else than ours: it is
    shown, but not compared.

    `of` says what the figures are of: the student; the teacher that these overrides train; the network, without
    training; a generation or a pruned generation of a chain; or runs that the paper printed, by number in the column
    `run` of the published file. `smoke` are overrides for a smoke run. A figure draws the row at `x` in the series of
    this name.
    """

    train: list[str] = Field(default_factory=list)
    smoke: list[str] = Field(default_factory=list)
    of: Of = "student"
    generation: Annotated[int, Field(ge=0)] | None = None
    run: str | None = None
    published: dict[str, str] = Field(default_factory=dict)
    instead: dict[str, str] = Field(default_factory=dict)
    elsewhere: dict[str, Published] = Field(default_factory=dict)
    unlike: list[str] = Field(default_factory=list)
    x: float | None = None
    series: str | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.generation is not None) != (self.of in ("generation", "pruned")):
            raise ValueError("a generation belongs to rows of a generation, and every such row names one")
        if (self.run is not None) != (self.of == "printed"):
            raise ValueError("run belongs to rows of printed runs, and every such row names one")
        return self


class Claim(Settings):
    """A statement of the paper that runs can support or contradict: a row's figure against another row's, or a number.

    `margin` is added to what it is compared with.
    """

    text: Text
    column: Text
    row: Text
    relation: Literal["lower", "higher"]
    than: str | float
    margin: float = 0.0


class PaperTable(Settings):
    """A table of a paper, and how kdx reproduces it.

    `dataset` and `common` are overrides of every row; a smoke run appends `smoke` and uses the digits data set. The
    rows are those listed, then every combination of the entries of `grid`, or of each of `grids`. With `figure` they
    are also drawn.
    """

    name: Text
    title: Text
    published: Text
    dataset: list[str]
    common: list[str] = Field(default_factory=list)
    smoke: list[str] = Field(default_factory=list)
    columns: dict[str, Column]
    rows: dict[str, Row]
    claims: list[Claim] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    figure: Figure | None = None

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for claim in self.claims:
            rows = [claim.row, claim.than] if isinstance(claim.than, str) else [claim.row]
            missing = [row for row in rows if row not in self.rows]
            if missing or claim.column not in self.columns:
                raise ValueError(f"claim '{claim.text}' speaks of {missing or claim.column}, which the table lacks")
        read = {column.published.value for column in self.columns.values() if column.published}
        for label, row in self.rows.items():
            if absent := [column for column in (*row.unlike, *row.elsewhere) if column not in self.columns]:
                raise ValueError(f"row '{label}' speaks of {', '.join(absent)}, which the table lacks")
            if unread := row.instead.keys() - read:
                raise ValueError(f"row '{label}' replaces {', '.join(unread)}, which no column reads")
        return self

    def printed_runs(self, row: str, column: str) -> tuple[float, ...]:
        """The numbers of all single runs that the paper printed for a cell."""
        where, each = self.columns[column].published, self.rows[row]
        numbered = each.run
        if where is None or numbered is None:
            return ()
        conditions = {key: value for key, value in each.published.items() if key != numbered}
        runs = [line[numbered] for line in read_published(self.published) if line[numbered].isdecimal()]
        texts = [
            select(self.published, where, {**conditions, numbered: run}, each.instead) for run in dict.fromkeys(runs)
        ]
        return tuple(float(text) for text in texts if text is not None)

    def printed(self, row: str, column: str) -> str | None:
        """The published number of a cell with its printed digits (scaled to the column's unit), or None."""
        where, each = self.columns[column].published, self.rows[row]
        if place := each.elsewhere.get(column):
            return select(place.file or self.published, place, place.where)
        return None if where is None else select(where.file or self.published, where, each.published, each.instead)


def table_names() -> list[str]:
    """The names of all tables, as paper/table."""
    folder = conf_folder() / "paper"
    files = (file for file in folder.glob("*/*.yaml"))
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def named(name: str) -> list[str]:
    """The tables that `name` stands for: one table, or all of a paper; raises UserError for another name."""
    names = table_names()
    found = [each for each in names if name in (each, each.partition("/")[0])]
    if not found:
        raise unknown("reproduce", name, [*names, *{each.partition("/")[0] for each in names}])
    return found


def load_table(name: str) -> PaperTable:
    """Read a table's declaration; raises UserError if its file does not fit the schema."""
    file = Path(conf_folder(), "paper", f"{name}.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{file}: it holds no table")
    rows = dict(content.get("rows", {}))
    # A table has one `grid`, or several `grids`, where some rows need other words than others.
    for grid in [*([content.pop("grid")] if "grid" in content else []), *content.pop("grids", [])]:
        axes = [
            {label: settings_from(Part, part, f"{file}: grid.{label}") for label, part in axis.items()} for axis in grid
        ]
        rows |= {label: row.model_dump() for label, row in _combined(axes).items()}
    return settings_from(PaperTable, content | {"name": name, "rows": rows}, str(file))


def _combined(axes: Sequence[Mapping[str, Part]]) -> dict[str, Row]:
    """A row for every combination of one entry per axis; its series is the first axis' entry."""
    rows = {}
    for combination in product(*(axis.items() for axis in axes)):
        labels, parts = zip(*combination, strict=True)
        published = [part.published for part in parts]
        rows[", ".join(labels)] = Row(
            train=[word for part in parts for word in part.train],
            smoke=[word for part in parts for word in part.smoke],
            of=_only([part.of for part in parts]) or "student",
            generation=_only([part.generation for part in parts]),
            published={} if None in published else dict(ChainMap(*(each for each in published if each))),
            instead=dict(ChainMap(*(part.instead for part in parts))),
            x=_only([part.x for part in parts]),
            series=labels[0],
        )
    return rows


def _only(values: Sequence[Value | None]) -> Value | None:
    """The only value that is not None; raises ValueError if axes contradict each other."""
    given = [value for value in values if value is not None]
    if len(given) > 1:
        raise ValueError(f"several axes of a grid say the same: {given}")
    return given[0] if given else None
