"""A data set: three splits of images and labels, held in memory as whole tensors."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdx.config.datasets import DatasetSettings, Mirror
from kdx.data.preprocessing import Preprocessing
from kdx.data.splits import nested_choice, stratified_choice
from kdx.errors import UserError


def copy_async(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; a copy to a GPU is asynchronous."""
    # A copy from pageable memory would wait for all work that is queued on the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) as stored, and their labels, int64 (N,).

    Without `preprocessing` the images are float32 and go into networks unchanged; otherwise each mini-batch is
    preprocessed.

    With `mirror` every sample gives two images: image `2 i` is sample i, image `2 i + 1` its mirror image; without,
    image i is sample i. Every image has `shifts` views, shifted by up to `shift` pixels in each direction, the first
    unshifted: view `shifts k + p` is image k at shift p. Mirroring and shifting follow the preprocessing; pixels from
    outside of the image repeat the nearest pixel of its border.
    """

    images: Tensor
    labels: Tensor
    preprocessing: Preprocessing | None = None
    mirror: Mirror = "none"
    shift: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def offsets(self) -> list[int]:
        """The possible offsets in pixels, the same down and to the right, in the order of the views."""
        return [*range(self.shift + 1), *range(-self.shift, 0)]

    @property
    def shifts(self) -> int:
        """The number of shifted views of every image: every offset down with every offset to the right."""
        return len(self.offsets) ** 2

    @property
    def views(self) -> int:
        """The number of views of every sample, mirror images included."""
        return self.shifts if self.mirror == "none" else 2 * self.shifts

    @property
    def per_epoch(self) -> int:
        """The number of examples in one epoch of training: the samples, or twice as many with mirrored copies."""
        return 2 * len(self) if self.mirror == "copies" else len(self)

    def order(self, shuffle: torch.Generator, flip: torch.Generator, move: torch.Generator) -> Tensor:
        """The views (per_epoch,) of one epoch in random order.

        `flip` draws which are mirrored, `move` the shift of each, uniformly. All are drawn on the CPU, so that a seed
        gives the same order on every device.
        """
        order = torch.randperm(self.per_epoch, generator=shuffle)
        if self.mirror == "random":
            order = 2 * order + torch.randint(2, order.shape, generator=flip)
        if self.shift:
            order = self.shifts * order + torch.randint(self.shifts, order.shape, generator=move)
        return copy_async(order, self.images.device)

    def take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The images, float32 (batch, C, H, W), and labels (batch,) of the views with the numbers `chosen` (batch,)."""
        samples = chosen if self.views == 1 else chosen // self.views
        images, labels = self._prepared(self.images.index_select(0, samples)), self.labels.index_select(0, samples)
        return (images if self.views == 1 else self._seen(images, chosen % self.views)), labels

    def batches(self, size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """Every sample once, in order, not mirrored or shifted: float32 images (at most `size`, C, H, W) and labels."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield self._prepared(images), labels

    def to(self, device: torch.device | str) -> "Split":
        """The same split with its tensors on `device`."""
        preprocessing = self.preprocessing and self.preprocessing.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), preprocessing=preprocessing)

    def _prepared(self, images: Tensor) -> Tensor:
        return images if self.preprocessing is None else self.preprocessing(images)

    def _seen(self, images: Tensor, views: Tensor) -> Tensor:
        """The views with the numbers `views` (batch,) of preprocessed images (batch, C, H, W)."""
        channels, height, width = images.shape[1:]
        down, right = (self._offset(number).unsqueeze(1) for number in (views // len(self.offsets), views))
        rows = (torch.arange(height, device=images.device) + down).clamp(0, height - 1)
        columns = (torch.arange(width, device=images.device) + right).clamp(0, width - 1)
        if self.mirror != "none":
            mirrored = (views // self.shifts % 2 == 1).unsqueeze(1)
            columns = torch.where(mirrored, width - 1 - columns, columns)
        # Mirroring and shifting in one indexing operation, which takes as long as mirroring alone.
        places = (width * rows).unsqueeze(2) + columns.unsqueeze(1)
        places = places.flatten(1).unsqueeze(1).expand(-1, channels, -1)
        return images.flatten(2).gather(2, places).unflatten(2, (height, width))

    def _offset(self, number: Tensor) -> Tensor:
        """The offset with this number, modulo the number of offsets."""
        # Computed, because a table would have to be copied from the CPU.
        return (number + self.shift) % len(self.offsets) - self.shift


@dataclass(frozen=True)
class Data:
    """A data set's three splits; `fingerprint` is a hash of the pixels, labels, order and preprocessing of `train`."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: int
    fingerprint: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
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
    """The splits that `settings` asks for, made of `train` and `test`: (stored pixels, labels).

    `held_out` is the mask (N,) of the validation samples, by default a stratified random choice; the training samples
    are drawn from the others. Raises UserError if there are too few samples.
    """
    images, labels = train
    if held_out is None:
        check_validation(settings, len(labels))
        held_out = stratified_choice(labels, settings.validation, settings.split_seed)
    kept = _kept(settings, labels, held_out)
    pixels = images[kept]
    fitted = preprocessing.fitted(pixels)

    def split(pixels: Tensor, labels: Tensor) -> Split:
        return Split(pixels, labels, fitted) if fitted.per_batch else Split(fitted(pixels), labels)

    training = replace(split(pixels, labels[kept]), mirror=settings.mirror, shift=settings.shift)
    return Data(
        name=settings.name,
        train=training,
        validation=split(images[held_out], labels[held_out]) if settings.validation else None,
        test=split(*test),
        classes=settings.classes,
        fingerprint=fingerprint(training, fitted.name),
    )


def check_validation(settings: DatasetSettings, samples: int) -> None:
    """Raise UserError if `dataset.validation` would leave no training sample of so many."""
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
    """The mask (N,) of the training samples: all that are not held out, or `dataset.train_size` of them."""
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
