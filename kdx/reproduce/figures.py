"""The declaration of a paper's figure; a figure is a table that is also drawn."""

from typing import Annotated, Literal

from pydantic import Field

from kdx.config.base import Settings

Text = Annotated[str, Field(min_length=1)]


class Lines(Settings):
    """A column over the rows' `x`, one line per series; rows without `x` are horizontal lines.

    `x` is the axis title; `log` lists the logarithmic axes.
    """

    kind: Literal["lines"]
    y: Text
    x: Text
    log: list[Literal["x", "y"]] = Field(default_factory=list)


class Bars(Settings):
    """Columns as bars side by side for each row, and one panel per series.

    `x` is the axis title, by default that of the only column. `log` makes the axis logarithmic, with bars that begin at
    1. `levels` are published numbers of a whole panel: quantities in the table's published file, or ratios of two, as
    `this / that`.
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
