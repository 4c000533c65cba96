"""The settings of the `dataset` group: one schema for each data set, told apart by `name`."""

from typing import Annotated, Literal

from pydantic import Field

from kdx.settings import Settings

Mirror = Literal["none", "copies", "random"]
"""Mirrored training images: never, each as a sample of its own, or each sample mirrored at random in every epoch."""


class _Common(Settings):
    """From where to load images, how many training samples to hold out, and how many of the others to train on."""

    root: Annotated[str, Field(min_length=1)] | None
    validation: Annotated[int, Field(ge=0)]
    split_seed: Annotated[int, Field(ge=0, lt=2**63)]
    train_size: Annotated[int, Field(ge=1)] | None
    download: bool


class MnistSettings(_Common):
    """MNIST; a mirrored digit is another sign, so there is no mirroring."""

    name: Literal["mnist"]
    preprocessing: Literal["scale", "symmetric"]
    mirror: Literal["none"]


class DigitsSettings(_Common):
    """scikit-learn's digits; not mirrored either."""

    name: Literal["digits"]
    preprocessing: Literal["scale", "symmetric"]
    mirror: Literal["none"]


class Cifar10Settings(_Common):
    """CIFAR-10."""

    name: Literal["cifar10"]
    preprocessing: Literal["scale", "symmetric", "per-pixel-mean"]
    mirror: Mirror


class SvhnSettings(_Common):
    """SVHN; with `extra` its extra images are training samples too."""

    name: Literal["svhn"]
    extra: bool
    preprocessing: Literal["scale", "symmetric", "per-pixel-mean", "local-contrast"]
    mirror: Mirror


DatasetSettings = MnistSettings | DigitsSettings | Cifar10Settings | SvhnSettings
