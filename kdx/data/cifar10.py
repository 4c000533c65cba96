"""CIFAR-10 from its official Python batches."""

import io
import pickle
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdx.config.datasets import Cifar10Settings
from kdx.data.cache import cached
from kdx.data.dataset import Data, build_data
from kdx.data.download import LocalFile, SourceFile, SourceSet, fetch_files
from kdx.data.preprocessing import PER_BATCH
from kdx.errors import UserError

IMAGE_SHAPE = (3, 32, 32)

# All that the official files name; everything else in them is a dict, list, number or string, which needs no name.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],  # its module has moved since
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            admitted = ", ".join(".".join(names) for names in _ADMITTED)
            raise pickle.UnpicklingError(f"'{module}.{name}' is not admitted; admitted: {admitted}")
        return _ADMITTED[module, name]


def parse_batch(content: bytes, classes: int, name: str) -> tuple[Tensor, Tensor]:
    """The images, uint8 (N, 3, 32, 32), and labels, uint8 (N,), of one batch.

    Raises UserError, which names the file, if it holds anything else or asks for any object but a numpy array.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], np.array(batch[b"labels"])
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{name}: is not a batch of CIFAR-10 ({' '.join(str(error).split())})") from error
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.shape == (labels.size, prod(IMAGE_SHAPE))
        and labels.dtype.kind == "i"
        and labels.ndim == 1
        and ((labels >= 0) & (labels < classes)).all()
    ):
        raise UserError(f"{name}: is not a batch of CIFAR-10 (its images and labels do not fit together)")
    # A row has the red, the green and the blue plane of one image.
    return torch.from_numpy(pixels.reshape(-1, *IMAGE_SHAPE).copy()), torch.from_numpy(labels.astype(np.uint8))


PARTS = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}


def _mirrors() -> Sequence[str]:
    # torchvision keeps the address up to date; it takes seconds to import, so only a download does.
    from torchvision.datasets import CIFAR10

    return [CIFAR10.url.removesuffix(CIFAR10.filename)]


# Size and md5 of the official archive, and the md5s of the batches in it.
SOURCES = SourceSet(
    name="cifar10",
    files=(
        SourceFile(
            "cifar-10-python.tar.gz",
            170498071,
            "c58f30108f718f92721af3b95e74349a",
            {
                "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
                "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
                "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
    ),
    places=(".", "cifar10"),
    mirrors=_mirrors,
)


def load(settings: Cifar10Settings) -> Data:
    """CIFAR-10 as uint8 (N, 3, 32, 32), preprocessed mini-batch by mini-batch as `dataset.preprocessing` says.

    Raises UserError if files are missing or damaged, or for an impossible split.
    """
    files = fetch_files(SOURCES, settings.root, settings.download)
    stored = cached("cifar10", SOURCES.key(), lambda: _decode(files))
    train, test = ((stored[f"{part}_images"], stored[f"{part}_labels"].long()) for part in PARTS)
    return build_data(settings, train, test, PER_BATCH[settings.preprocessing])


def _decode(files: dict[str, LocalFile]) -> dict[str, Tensor]:
    wanted = {name for names in PARTS.values() for name in names}
    batches = {
        name: parse_batch(content, Cifar10Settings.classes, name)
        for file in files.values()
        for name, content in file.unpacked()
        if name in wanted
    }
    return {
        f"{part}_{content}": torch.cat([batches[name][index] for name in names])
        for part, names in PARTS.items()
        for index, content in enumerate(("images", "labels"))
    }
