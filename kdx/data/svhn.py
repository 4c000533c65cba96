"""SVHN's cropped digits (format 2) from its official MATLAB files."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from kdx.config.datasets import SvhnSettings
from kdx.data.cache import cached
from kdx.data.dataset import Data, build_data, check_validation
from kdx.data.download import LocalFile, SourceFile, SourceSet, fetch_files
from kdx.data.preprocessing import PER_BATCH
from kdx.data.splits import balanced_choice, stratified_choice
from kdx.errors import UserError

IMAGE_SHAPE = (32, 32, 3)


def _mirrors() -> Sequence[str]:
    # torchvision keeps the address up to date; it takes seconds to import, so only a download does.
    from torchvision.datasets import SVHN

    url, name, _ = SVHN.split_list["train"]
    return [url.removesuffix(name)]


# Sizes and md5s of the official files.
SOURCES = SourceSet(
    name="svhn",
    files=(
        SourceFile("train_32x32.mat", 182040794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
        SourceFile("test_32x32.mat", 64275384, "eb5a983be6a315427106f1b164d9cef3"),
        SourceFile("extra_32x32.mat", 1329278602, "a93ce644f1a588dc4d68dda5feec44a7"),
    ),
    places=("svhn", "SVHN", "."),
    mirrors=_mirrors,
)


def load(settings: SvhnSettings) -> Data:
    """SVHN as uint8 (N, 3, 32, 32), preprocessed mini-batch by mini-batch as `dataset.preprocessing` says.

    The training samples are those of train and then, with `dataset.extra`, those of extra: 598,388 beside 6,000 for
    validation. Raises UserError if files are missing or damaged, or for an impossible split.
    """
    wanted = SOURCES.files if settings.extra else SOURCES.files[:2]
    verified = fetch_files(replace(SOURCES, files=wanted), settings.root, settings.download)
    first, second, *extra = wanted
    train, sizes = _joined([first, *extra], verified)
    test, _ = _joined([second], verified)
    held_out = _held_out(settings, train[1], sizes)
    return build_data(settings, train, test, PER_BATCH[settings.preprocessing], held_out)


def _joined(sources: Sequence[SourceFile], verified: dict[str, LocalFile]) -> tuple[tuple[Tensor, Tensor], list[int]]:
    """Images, uint8 (N, 3, 32, 32), and labels, int64 (N,), of these files one after the other, and their sizes."""
    parts = [_part(source, verified[source.name]) for source in sources]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return (images, labels), [len(labels) for _, labels in parts]


def _held_out(settings: SvhnSettings, labels: Tensor, sizes: list[int]) -> Tensor:
    """The mask (N,) of the validation samples; `sizes` are those of train and, where it is used, of extra.

    With extra, Sermanet et al. 2012 hold out 400 of every class of train and 200 of extra, as do the Noisy Teachers;
    other sizes are divided in the same way. Without extra every class is held out in proportion, as in all data sets.
    """
    check_validation(settings, len(labels))
    if len(sizes) == 1:
        return stratified_choice(labels, settings.validation, settings.split_seed)
    count = settings.validation
    shares = (count - count // 3, count // 3)
    chosen = torch.cat(
        [
            balanced_choice(part, share, SvhnSettings.classes, settings.split_seed)
            for part, share in zip(labels.split(sizes), shares, strict=True)
        ]
    )
    if int(chosen.sum()) != count:
        raise UserError(
            f"dataset.validation: {count} is not possible; allowed: less, since a third of it is drawn from extra, two "
            "thirds from train, and a class has too few samples for its tenth"
        )
    return chosen


def _part(source: SourceFile, file: LocalFile) -> tuple[Tensor, Tensor]:
    """Images, uint8 (N, 3, 32, 32), and labels, int64 (N,), of one file."""
    stored = cached(f"svhn-{source.name.partition('_')[0]}", source.md5, lambda: _decode(file, source.name))
    return stored["images"], stored["labels"].long()


def _decode(file: LocalFile, name: str) -> dict[str, Tensor]:
    try:
        with file.open() as content:
            arrays = loadmat(content, variable_names=("X", "y"))
        images, labels = arrays["X"], arrays["y"].reshape(-1)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{name}: is not a file of SVHN ({' '.join(str(error).split())})") from error
    whole = images.dtype == np.uint8 and images.shape == (*IMAGE_SHAPE, len(labels)) and labels.dtype.kind in "iuf"
    if not whole or not np.isin(labels, np.arange(1, SvhnSettings.classes + 1)).all():
        raise UserError(f"{name}: is not a file of SVHN (its images and labels do not fit together)")
    # (height, width, channel, sample) to (sample, channel, height, width); the digit 0 has label 10.
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return {"images": pixels, "labels": torch.from_numpy((labels % SvhnSettings.classes).astype(np.uint8))}
