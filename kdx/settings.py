"""The base of every group of settings: typed, frozen, nothing unknown, nothing infinite."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen group of settings; values live in `conf/`, so no field has a default here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
