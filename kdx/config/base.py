"""The base class of all settings: typed, frozen, without unknown keys, infinity or NaN."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class Settings(BaseModel):
    """A frozen group of settings, whose values are in `conf/`.

    A field with a default is newer than some results: at its default a run is what it was before the field existed, so
    that old configurations can be read, and ids leave it out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# Names become folders.
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$")]
Count = Annotated[int, Field(ge=1)]
DropoutRate = Annotated[float, Field(ge=0, lt=1)]
