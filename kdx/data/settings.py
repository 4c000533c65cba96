"""The settings of the `dataset` group: one class for each data set, told apart by `name`."""

# Settings are frozen, which pyright does not see: a field may have a narrower type than in the base.
# pyright: reportIncompatibleVariableOverride=false

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from kdx.registry import Registry
from kdx.settings import Settings

if TYPE_CHECKING:
    from kdx.data.dataset import Data

Mirror = Literal["none", "copies", "random"]
"""Mirrored training images: never, each as a sample of its own, or each sample mirrored at random in every epoch."""


class DatasetSettings(Settings):
    """What all data sets have: from where to load images, which training samples to hold out, and which to show how.

    `name` is the one that the registry has for the class. Training images are moved by up to `shift` pixels down or up
    and to the right or left, by other ones in every epoch.
    """

    image_shape: ClassVar[tuple[int, int, int]]
    """(C, H, W) of every image."""
    classes: ClassVar[int]
    has_official_checksum: ClassVar[bool] = False
    """Whether loading compares the files with a published checksum, so that `name` says which images these are."""

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

    def load(self) -> "Data":
        """Load the data set, on the CPU; raises UserError when its files are missing or damaged."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is loaded")

    def content_sha256(self) -> str:
        """SHA-256, in hexadecimal, of all images and labels, which loads them; raises UserError as `load` does."""
        from kdx.data import content_sha256

        return content_sha256(self)


# Torch is imported where something is loaded, so that settings are read without it.
class MnistSettings(DatasetSettings):
    """MNIST; a mirrored digit is another sign, so there is no mirroring."""

    image_shape = (1, 28, 28)
    classes = 10
    has_official_checksum = True

    name: Literal["mnist"]
    preprocessing: Literal["scale", "symmetric"]
    mirror: Literal["none"]

    def load(self) -> "Data":
        """From its official files."""
        from kdx.data import mnist

        return mnist.load(self)


class DigitsSettings(DatasetSettings):
    """scikit-learn's digits; not mirrored either."""

    image_shape = (1, 28, 28)
    classes = 10
    has_official_checksum = True

    name: Literal["digits"]
    preprocessing: Literal["scale", "symmetric"]
    mirror: Literal["none"]

    def load(self) -> "Data":
        """From scikit-learn."""
        from kdx.data import digits

        return digits.load(self)


class Cifar10Settings(DatasetSettings):
    """CIFAR-10."""

    image_shape = (3, 32, 32)
    classes = 10
    has_official_checksum = True

    name: Literal["cifar10"]
    preprocessing: Literal["scale", "symmetric", "per-pixel-mean"]
    mirror: Mirror

    def load(self) -> "Data":
        """From its official files."""
        from kdx.data import cifar10

        return cifar10.load(self)


class SvhnSettings(DatasetSettings):
    """SVHN; with `extra` its extra images are training samples too."""

    image_shape = (3, 32, 32)
    classes = 10
    has_official_checksum = True

    name: Literal["svhn"]
    extra: bool
    preprocessing: Literal["scale", "symmetric", "per-pixel-mean", "local-contrast"]
    mirror: Mirror

    def load(self) -> "Data":
        """From its official files."""
        from kdx.data import svhn

        return svhn.load(self)


DATASETS: Registry[DatasetSettings] = Registry(
    "kdx.datasets",
    DatasetSettings,
    {
        "mnist": "kdx.data.settings:MnistSettings",
        "digits": "kdx.data.settings:DigitsSettings",
        "cifar10": "kdx.data.settings:Cifar10Settings",
        "svhn": "kdx.data.settings:SvhnSettings",
    },
)
"""`dataset.name`."""
