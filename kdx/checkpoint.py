"""Checkpoints of a training: one safetensors file, written atomically, that belongs to exactly one training."""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from kdx.tensors import DamagedTensors, load_tensors, save_tensors

FORMAT = 1

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training is: steps done, the history of finished epochs, seconds spent.

    `best_epoch` counts from 1 and is the one with the lowest validation error, where the training stops early;
    `execution` is how the latest steps were executed.
    """

    steps: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)
    best_epoch: int | None = None
    execution: str | None = None


def save_checkpoint(path: Path, identity: str, progress: Progress, tensors: dict[str, Tensor]) -> None:
    """Write everything that the training `identity` needs to go on from here."""
    save_tensors(path, tensors, {"format": FORMAT, "identity": identity, "progress": asdict(progress)})


def load_checkpoint(path: Path, identity: str, tensors: dict[str, Tensor]) -> Progress | None:
    """Copy a checkpoint into `tensors` and give its progress; None, and a line in the log, where it can't be used."""
    try:
        stored, header = load_tensors(path)
    except FileNotFoundError:
        return None
    except DamagedTensors as error:
        log.warning("checkpoint %s; training starts from the beginning", error)
        return None
    if header.get("format") != FORMAT or header.get("identity") != identity or not _fits(stored, tensors):
        log.warning("checkpoint %s belongs to another training or version; training starts from the beginning", path)
        return None
    for name, tensor in tensors.items():
        tensor.copy_(stored[name])
    return Progress(**header["progress"])


def _fits(stored: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    return stored.keys() == tensors.keys() and all(
        stored[name].shape == tensor.shape and stored[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
