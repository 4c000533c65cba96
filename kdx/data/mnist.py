"""MNIST from its four official IDX files."""

import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdx.config.datasets import MnistSettings
from kdx.data.cache import cached
from kdx.data.dataset import Data, build_data
from kdx.data.download import LocalFile, SourceFile, SourceSet, fetch_files
from kdx.data.preprocessing import PER_BATCH
from kdx.errors import UserError

UNSIGNED_BYTE = 0x08


def parse_idx(content: bytes, dimensions: int, name: str) -> Tensor:
    """The uint8 tensor in an IDX file; raises UserError, which names the file, if header and length disagree."""
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
        raise UserError(f"{name}: is not an IDX file of unsigned bytes with {dimensions} dimensions")
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if math.prod(sizes) != len(content) - header:
        raise UserError(f"{name}: the header says {sizes}, but {len(content) - header} bytes follow it")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(sizes).copy())


IMAGE_SIZE = (28, 28)


def _mirrors() -> Sequence[str]:
    # torchvision keeps the addresses up to date; it takes seconds to import, so only a download does.
    from torchvision.datasets import MNIST

    return MNIST.mirrors


# Sizes and md5s of the official files, and the md5s of what they unpack to.
SOURCES = SourceSet(
    name="mnist",
    files=(
        SourceFile(
            "train-images-idx3-ubyte.gz",
            9912422,
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            {"train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb"},
        ),
        SourceFile(
            "train-labels-idx1-ubyte.gz",
            28881,
            "d53e105ee54ea40749a09fcbcd1e9432",
            {"train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624"},
        ),
        SourceFile(
            "t10k-images-idx3-ubyte.gz",
            1648877,
            "9fb629c4189551a2d022fa330f9573f3",
            {"t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea"},
        ),
        SourceFile(
            "t10k-labels-idx1-ubyte.gz",
            4542,
            "ec29112dd5afa0611ce80d1b7f02629c",
            {"t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c629615203637"},
        ),
    ),
    places=("MNIST/raw", "mnist", "."),
    mirrors=_mirrors,
)


def load(settings: MnistSettings) -> Data:
    """MNIST as uint8 (N, 1, 28, 28), preprocessed mini-batch by mini-batch as `dataset.preprocessing` says.

    Raises UserError if files are missing or damaged, or for an impossible split.
    """
    files = fetch_files(SOURCES, settings.root, settings.download)
    stored = cached("mnist", SOURCES.key(), lambda: _decode(files))
    train, test = (
        (stored[f"{part}_images"].unsqueeze(1), stored[f"{part}_labels"].long()) for part in ("train", "test")
    )
    return build_data(settings, train, test, PER_BATCH[settings.preprocessing])


def _decode(files: dict[str, LocalFile]) -> dict[str, Tensor]:
    contents = {name: content for file in files.values() for name, content in file.unpacked()}
    tensors = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images_name, labels_name = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images = parse_idx(contents[images_name], 3, images_name)
        labels = parse_idx(contents[labels_name], 1, labels_name)
        if (labels >= MnistSettings.classes).any():
            raise UserError(f"{labels_name}: there are labels above {MnistSettings.classes - 1}")
        if tuple(images.shape) != (len(labels), *IMAGE_SIZE):
            raise UserError(f"{images_name}: images {tuple(images.shape)} do not fit the {len(labels)} labels")
        tensors |= {f"{part}_images": images, f"{part}_labels": labels}
    return tensors
