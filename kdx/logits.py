"""The teacher-logit store: a float32 row per view of a training sample, on disk, that knows its origin."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdx.data.dataset import Data
from kdx.files import sha256_of, write_atomically, write_json
from kdx.lock import held
from kdx.measure.accuracy import logits_of
from kdx.tensors import tensors_sha256

FORMAT = 2
ORDER = "rows, views, classes: row i is sample i of the training split, its second view the mirror image"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What stored logits were computed from; stored logits of any other source are refused."""

    teacher_sha256: str
    data_fingerprint: str
    rows: int
    views: int
    classes: int
    order: str = ORDER
    dtype: str = "float32 little endian"
    format: int = FORMAT

    @property
    def key(self) -> str:
        """The name of the store's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def teacher_logits(teacher: nn.Module, data: Data, outputs: Path) -> Tensor:
    """The teacher's logits of the training split, (samples * views, classes): row i is the view i of `Split`.

    They are memory-mapped from the store under `outputs`, and computed where it lacks them or is damaged, by one
    process at a time; the log says so.
    """
    train = data.train
    source = Source(tensors_sha256(teacher.state_dict()), data.fingerprint, len(train), train.views, data.classes)
    folder = outputs / "logits" / source.key
    with held(folder):
        folder.mkdir(exist_ok=True)
        damage = _damage(folder, source, data)
        if damage is not None:
            log.log(logging.INFO if damage == "absent" else logging.WARNING, "logit store %s: %s", folder, damage)
            _build(folder, source, teacher, data)
            damage = _damage(folder, source, data)
            if damage is not None:
                raise OSError(f"logit store {folder}: {damage}, although it was written just now")
    return _mapped(folder, source).flatten(0, 1).to(train.images.device)


def _build(folder: Path, source: Source, teacher: nn.Module, data: Data) -> None:
    manifest = folder / "manifest.json"
    # The manifest vouches for the rows: it goes first and comes back last.
    manifest.unlink(missing_ok=True)
    logits = logits_of(teacher, data.train).float().cpu().contiguous()
    rows = folder / "logits.f32"
    write_atomically(rows, lambda path: path.write_bytes(logits.numpy().astype("<f4").tobytes()))
    stored = _mapped(folder, source)
    write_json(
        manifest,
        asdict(source) | {"sha256": sha256_of(rows), "teacher_train_error_percent": _error_percent(stored, data)},
    )


def _damage(folder: Path, source: Source, data: Data) -> str | None:
    """What is wrong with the store, in words; None when it can be trusted."""
    rows, manifest = folder / "logits.f32", folder / "manifest.json"
    if not rows.exists() and not manifest.exists():
        return "absent"
    try:
        written = json.loads(manifest.read_bytes())
        size = rows.stat().st_size
    except (OSError, ValueError) as error:
        return f"damaged ({error}), computed again"
    if not isinstance(written, dict) or any(written.get(key) != value for key, value in asdict(source).items()):
        return "made from another teacher, data set or version, computed again"
    if size != 4 * source.rows * source.views * source.classes or sha256_of(rows) != written.get("sha256"):
        return "damaged (its rows are not those that were written), computed again"
    if _error_percent(_mapped(folder, source), data) != written.get("teacher_train_error_percent"):
        return "out of order (the teacher's accuracy through it has changed), computed again"
    return None


def _mapped(folder: Path, source: Source) -> Tensor:
    """The rows (rows, views, classes), read from the file as they are needed."""
    size = source.rows * source.views * source.classes
    flat = torch.from_file(str(folder / "logits.f32"), shared=False, size=size, dtype=torch.float32)
    return flat.view(source.rows, source.views, source.classes)


def _error_percent(logits: Tensor, data: Data) -> float:
    wrong = (logits.argmax(dim=2) != data.train.labels.cpu().unsqueeze(1)).sum().item()
    return 100.0 * wrong / (len(data.train) * data.train.views)
