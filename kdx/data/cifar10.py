"""CIFAR-10 from its official Python batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdx.data.batches import parse_batch
from kdx.data.dataset import Data, build_data
from kdx.data.decoded import decoded
from kdx.data.preprocessing import PER_BATCH
from kdx.data.settings import Cifar10Settings
from kdx.data.sources import SourceFile, SourceSet, Verified, obtain

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
    files = obtain(SOURCES, settings.root, settings.download)
    stored = decoded("cifar10", SOURCES.key(), lambda: _decode(files))
    train, test = ((stored[f"{part}_images"], stored[f"{part}_labels"].long()) for part in PARTS)
    return build_data(settings, train, test, PER_BATCH[settings.preprocessing])


def _decode(files: dict[str, Verified]) -> dict[str, Tensor]:
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
