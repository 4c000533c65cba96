"""What a figure of a paper shows; a figure is a table that is drawn as well."""

from typing import Annotated, Literal

from pydantic import Field

from kdx.settings import Settings

Text = Annotated[str, Field(min_length=1)]


class Lines(Settings):
    """A column over the rows' `x`, a line for each series; rows without `x` are horizontal lines.

    `x` is the title of the axis; `log` are the axes that are logarithmic.
    """

    kind: Literal["lines"]
    y: Text
    x: Text
    log: list[Literal["x", "y"]] = Field(default_factory=list)


class Bars(Settings):
    """Columns as bars side by side for each row, and a panel for each series.

    `x` is the title of their axis, by default the only column's. `log` makes it logarithmic, with bars that begin at 1.
    `levels` are published numbers of a panel as a whole: quantities in the table's published file, or ratios of two,
    as `this / that`.
    """

    kind: Literal["bars"]
    y: list[Text]
    x: Text | None = None
    log: bool = False
    levels: dict[str, list[Text]] = Field(default_factory=dict)


class Weights(Settings):
    """Histograms of all weights of each row's network, with common bins and logarithmic counts."""

    kind: Literal["weights"]


Figure = Annotated[Lines | Bars | Weights, Field(discriminator="kind")]
