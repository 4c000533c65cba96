"""The base of every group of settings: typed, frozen, nothing unknown, nothing infinite."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen group of settings, whose values live in `conf/`.

    A field with a default came later than results: at its default a run is what it was before there was the field, so
    that configurations from before are read, and ids leave it out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
