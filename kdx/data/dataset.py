"""A data set: three splits of images and labels, whole, as tensors."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdx.data.preprocessing import Preprocessing
from kdx.data.settings import DatasetSettings, Mirror
from kdx.data.stratified import nested_choice, stratified_choice
from kdx.errors import UserError
from kdx.transfer import onto


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) as they lie in memory, and their labels, int64 (N,).

    Without `preprocessing` the images are float32 and are what networks see; otherwise it makes that of a batch.
    With `mirror` every sample has two views: view `2 i` is sample i as it is, view `2 i + 1` its mirror image, taken
    after the preprocessing. Without, view i is sample i.
    """

    images: Tensor
    labels: Tensor
    preprocessing: Preprocessing | None = None
    mirror: Mirror = "none"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def views(self) -> int:
        """How many views every sample has."""
        return 1 if self.mirror == "none" else 2

    @property
    def per_epoch(self) -> int:
        """How many examples one epoch of training shows: with mirrored copies, two for each sample."""
        return 2 * len(self) if self.mirror == "copies" else len(self)

    def order(self, shuffle: torch.Generator, flip: torch.Generator) -> Tensor:
        """The views (per_epoch,) that one epoch shows, in its order; `flip` decides which are mirrored at random.

        Drawn on the CPU, so that a seed has the same order on every device.
        """
        order = torch.randperm(self.per_epoch, generator=shuffle)
        if self.mirror == "random":
            order = 2 * order + torch.randint(2, order.shape, generator=flip)
        return onto(order, self.images.device)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The images, float32 (batch, C, H, W), and labels (batch,) of the views `chosen` (batch,)."""
        samples = chosen if self.views == 1 else chosen // 2
        images, labels = self._prepared(self.images.index_select(0, samples)), self.labels.index_select(0, samples)
        if self.views == 1:
            return images, labels
        mirrored = (chosen % 2 == 1).reshape(-1, 1, 1, 1)
        return torch.where(mirrored, images.flip(3), images), labels

    def batches(self, size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Every sample once, in order and not mirrored: images, float32 (at most `size`, C, H, W), and labels."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield self._prepared(images), labels

    def to(self, device: torch.device | str) -> "Split":
        """The same samples on `device`."""
        preprocessing = self.preprocessing and self.preprocessing.to(device)
        return Split(self.images.to(device), self.labels.to(device), preprocessing, self.mirror)

    def _prepared(self, images: Tensor) -> Tensor:
        return images if self.preprocessing is None else self.preprocessing(images)


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


def build_data(
    settings: DatasetSettings,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    preprocessing: Preprocessing,
    held_out: Tensor | None = None,
) -> Data:
    """The splits of `train` and `test`, (stored pixels, labels), as `settings` asks for them.

    `held_out` is the mask (N,) of the validation samples, by default drawn with every class in proportion; the
    training samples are drawn from the others. Raises UserError when they do not suffice.
    """
    images, labels = train
    if held_out is None:
        check_validation(settings, len(labels))
        held_out = stratified_choice(labels, settings.validation, settings.split_seed)
    kept = _kept(settings, labels, held_out)
    pixels = images[kept]
    fitted = preprocessing.fitted(pixels)

    def split(pixels: Tensor, labels: Tensor, mirror: Mirror = "none") -> Split:
        if fitted.per_batch:
            return Split(pixels, labels, fitted, mirror)
        return Split(fitted(pixels), labels, mirror=mirror)

    training = split(pixels, labels[kept], settings.mirror)
    return Data(
        name=settings.name,
        train=training,
        validation=split(images[held_out], labels[held_out]) if settings.validation else None,
        test=split(*test),
        classes=settings.classes,
        fingerprint=fingerprint(training, fitted.name),
    )


def check_validation(settings: DatasetSettings, samples: int) -> None:
    """Raise UserError when holding out `dataset.validation` of so many training samples leaves none."""
    if not 0 <= settings.validation < samples:
        raise UserError(
            f"dataset.validation: {settings.validation} is not possible; allowed: 0 to {samples - 1}, "
            f"since {settings.name} has {samples} training samples and at least one must be left"
        )


def fingerprint(split: Split, preprocessing: str) -> str:
    """SHA-256, in hexadecimal, of the stored pixels, labels and order of `split` and of its preprocessing."""
    digest = hashlib.sha256(f"{preprocessing}\n{tuple(split.images.shape)}\n".encode())
    constants = split.preprocessing.constants if split.preprocessing else ()
    for tensor in (split.images, split.labels, *constants):
        digest.update(tensor.contiguous().cpu().numpy().data)
    return digest.hexdigest()


def _kept(settings: DatasetSettings, labels: Tensor, held_out: Tensor) -> Tensor:
    """The mask (N,) of the samples to train on: all that are not held out, or `dataset.train_size` of them."""
    kept = ~held_out
    if settings.train_size is None:
        return kept
    rest = int(kept.sum())
    if settings.train_size > rest:
        raise UserError(
            f"dataset.train_size: {settings.train_size} is not possible; allowed: 1 to {rest} or null, "
            f"since so many training samples are left beside dataset.validation={settings.validation}"
        )
    kept[kept.clone()] = nested_choice(labels[kept], settings.train_size, settings.split_seed)
    return kept
