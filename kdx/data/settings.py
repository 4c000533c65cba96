"""The settings of the `dataset` group."""

from typing import Annotated, Literal

from pydantic import Field

from kdx.settings import Settings


class DatasetSettings(Settings):
    """Which images to load, from where, and how many training samples to hold out for validation."""

    name: Literal["mnist", "digits"]
    root: Annotated[str, Field(min_length=1)] | None
    validation: Annotated[int, Field(ge=0)]
    split_seed: Annotated[int, Field(ge=0, lt=2**63)]
    download: bool
