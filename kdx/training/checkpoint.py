"""Checkpoints: one safetensors file, written atomically, that can be loaded only by the training that wrote it."""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from kdx.device.execution import Facts
from kdx.storage.tensors import DamagedTensors, load_tensors, save_tensors

log = logging.getLogger(__name__)


FORMAT = 2


@dataclass
class Progress:
    """The progress of a training: steps done, history of finished epochs, seconds spent.

    `best_epoch`, from 1, has the lowest validation error, with early stopping; `executed` holds each way in which steps
    were executed, several if training was resumed in another way.
    """

    steps: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)
    best_epoch: int | None = None
    executed: list[Facts] = field(default_factory=list)

    def note(self, facts: Facts) -> None:
        """Record how the next steps are executed."""
        if not self.executed or self.executed[-1] != facts:
            self.executed.append(facts)

    def execution(self) -> Facts:
        """How all steps were executed; a fact that changed on the way reads "1, then 2"."""
        keys = dict.fromkeys(key for facts in self.executed for key in facts)
        values = {key: list(dict.fromkeys(facts[key] for facts in self.executed if key in facts)) for key in keys}
        return {key: found[0] if len(found) == 1 else ", then ".join(map(str, found)) for key, found in values.items()}


def save_checkpoint(path: Path, identity: str, progress: Progress, tensors: dict[str, Tensor]) -> None:
    """Write everything that the training `identity` needs to be resumed."""
    save_tensors(path, tensors, {"format": FORMAT, "identity": identity, "progress": asdict(progress)})


def load_checkpoint(path: Path, identity: str, tensors: dict[str, Tensor]) -> Progress | None:
    """Copy a checkpoint into `tensors` and return its progress; None, with a log message, if it cannot be used."""
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
