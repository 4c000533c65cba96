"""CIFAR's Python batches: pickle files, read by an unpickler that allows only what the official files contain."""

import io
import pickle
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
