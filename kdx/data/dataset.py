"""A data set: three splits of images and labels, whole, as tensors."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdx.data.settings import DatasetSettings
from kdx.data.stratified import stratified_choice
from kdx.errors import UserError


@dataclass(frozen=True)
class Split:
    """Images, float32 (N, C, H, W), and their labels, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same samples on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A data set; `fingerprint` identifies the pixels, labels, order and preprocessing of `train`."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: int
    fingerprint: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> "Data":
        """The same data with every split on `device`."""
        validation = self.validation and self.validation.to(device)
        return replace(self, train=self.train.to(device), validation=validation, test=self.test.to(device))


@dataclass(frozen=True)
class Preprocessing:
    """How stored pixels (N, C, H, W) become float32 images; `name` says so in words and is part of fingerprints."""

    name: str
    apply: Callable[[Tensor], Tensor]


def build_data(
    settings: DatasetSettings,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    preprocessing: Preprocessing,
) -> Data:
    """Hold out the validation samples of `train`, (stored pixels, labels), and preprocess every split.

    Raises UserError when `settings.validation` leaves no training sample.
    """
    images, labels = train
    held_out = _held_out(settings, labels)
    kept_split = Split(preprocessing.apply(images[~held_out]), labels[~held_out])
    validation = Split(preprocessing.apply(images[held_out]), labels[held_out]) if settings.validation else None
    return Data(
        name=settings.name,
        train=kept_split,
        validation=validation,
        test=Split(preprocessing.apply(test[0]), test[1]),
        classes=classes,
        fingerprint=fingerprint(kept_split, preprocessing.name),
    )


def fingerprint(split: Split, preprocessing: str) -> str:
    """SHA-256, in hexadecimal, of the pixels, labels and order of `split` and the name of its preprocessing."""
    digest = hashlib.sha256(f"{preprocessing}\n{tuple(split.images.shape)}\n".encode())
    for tensor in (split.images, split.labels):
        digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _held_out(settings: DatasetSettings, labels: Tensor) -> Tensor:
    if not 0 <= settings.validation < len(labels):
        raise UserError(
            f"dataset.validation: {settings.validation} is not possible; allowed: 0 to {len(labels) - 1}, "
            f"since {settings.name} has {len(labels)} training samples and at least one must be left"
        )
    return stratified_choice(labels, settings.validation, settings.split_seed)
