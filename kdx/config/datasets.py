"""The settings of the `dataset` group: one class for each data set, told apart by `name`."""

# Settings are frozen, which pyright does not see: a field may have a narrower type than in the base.
# pyright: reportIncompatibleVariableOverride=false

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from kdx.config.base import Settings
from kdx.config.registry import Registry

Mirror = Literal["none", "copies", "random"]
"""Mirrored training images: none, one more sample for each, or each sample mirrored at random in every epoch."""


class DatasetSettings(Settings):
    """The settings of all data sets: where the files are, which samples to hold out, and the augmentation.

    `name` is the name under which the registry has the class. Training images are shifted at random by up to `shift`
    pixels in each direction, anew in every epoch.
    """

    image_shape: ClassVar[tuple[int, int, int]]
    """The shape (C, H, W) of an image."""
    classes: ClassVar[int]
    has_official_checksum: ClassVar[bool] = False
    """Whether loading checks the files against published checksums, so that `name` alone identifies the images."""

    name: str
    root: Annotated[str, Field(min_length=1)] | None
    validation: Annotated[int, Field(ge=0)]
    split_seed: Annotated[int, Field(ge=0, lt=2**63)]
    train_size: Annotated[int, Field(ge=1)] | None
    preprocessing: str
    mirror: Mirror
    shift: Annotated[int, Field(ge=0)] = 0
    download: bool

    @field_validator("shift")
    @classmethod
    def _leaves_something(cls, shift: int) -> int:
        side = min(cls.image_shape[1:])
        if shift >= side:
            raise ValueError(f"0 to {side - 1}, since images have {side} pixels")
        return shift

    def load(self) -> Any:
        """The `kdx.data.dataset.Data` of a package's data set, on the CPU; kdx's own are loaded by `kdx.data`.

        Raises UserError when its files are missing or damaged.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it is loaded")


class MnistSettings(DatasetSettings):
    """MNIST; there is no mirroring, since a mirrored digit is no digit."""

    image_shape = (1, 28, 28)
    classes = 10
    has_official_checksum = True

    name: Literal["mnist"]
    preprocessing: Literal["scale", "symmetric"]
    mirror: Literal["none"]


class DigitsSettings(DatasetSettings):
    """scikit-learn's digits; no mirroring, as for MNIST."""

    image_shape = (1, 28, 28)
    classes = 10
    has_official_checksum = True

    name: Literal["digits"]
    preprocessing: Literal["scale", "symmetric"]
    mirror: Literal["none"]


class Cifar10Settings(DatasetSettings):
    """CIFAR-10."""

    image_shape = (3, 32, 32)
    classes = 10
    has_official_checksum = True

    name: Literal["cifar10"]
    preprocessing: Literal["scale", "symmetric", "per-pixel-mean"]
    mirror: Mirror


class SvhnSettings(DatasetSettings):
    """SVHN; with `extra` the images of its extra set are training samples too."""

    image_shape = (3, 32, 32)
    classes = 10
    has_official_checksum = True

    name: Literal["svhn"]
    extra: bool
    preprocessing: Literal["scale", "symmetric", "per-pixel-mean", "local-contrast"]
    mirror: Mirror


DATASETS: Registry[DatasetSettings] = Registry(
    "kdx.datasets",
    DatasetSettings,
    {
        "mnist": "kdx.config.datasets:MnistSettings",
        "digits": "kdx.config.datasets:DigitsSettings",
        "cifar10": "kdx.config.datasets:Cifar10Settings",
        "svhn": "kdx.config.datasets:SvhnSettings",
    },
)
"""The names allowed as `dataset.name`."""
