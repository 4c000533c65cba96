"""Image data sets as tensors in memory; `load_data` is the way in."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from kdx.config.datasets import DatasetSettings
from kdx.data import cifar10, digits, mnist, svhn
from kdx.data.dataset import Data, fingerprint

_LOADERS: Mapping[str, Callable[[Any], Data]] = {
    "mnist": mnist.load,
    "digits": digits.load,
    "cifar10": cifar10.load,
    "svhn": svhn.load,
}


def load_data(settings: DatasetSettings) -> Data:
    """Load the data set of `settings` onto the CPU; raises UserError if its files are missing or damaged.

    Raises ValueError if a package's data set does not match what its settings declare.
    """
    load = _LOADERS.get(settings.name)
    data = settings.load() if load is None else load(settings)
    loaded, declared = (data.image_shape, data.classes), (settings.image_shape, settings.classes)
    if loaded != declared:
        raise ValueError(
            f"{type(settings).__name__} declares images {declared[0]} of {declared[1]} classes, its data has"
            f" {loaded[0]} and {loaded[1]}"
        )
    return data


def content_sha256(settings: DatasetSettings) -> str:
    """SHA-256, in hexadecimal, of the images and labels of all splits; raises as `load_data` does."""
    return _content_sha256(type(settings), settings.model_dump_json())


# Cached for all jobs of a sweep: files are assumed not to change while a process runs.
@functools.cache
def _content_sha256(kind: type[DatasetSettings], settings: str) -> str:
    data = load_data(kind.model_validate_json(settings))
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    return hashlib.sha256("".join(fingerprint(split, data.name) for split in splits).encode()).hexdigest()
