"""The store of teacher logits: on disk, one row per view of a training sample, with a manifest of its origin."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdx import console
from kdx.data.dataset import Data
from kdx.errors import Interrupted, UserError
from kdx.measure.accuracy import logits_of_view
from kdx.storage.files import sha256_of, write_atomically, write_json
from kdx.storage.lock import file_lock
from kdx.storage.tensors import DamagedTensors, load_tensors, save_tensors, tensors_sha256

log = logging.getLogger(__name__)


FORMAT = 2
ORDER = "rows, views, classes: row i is sample i of the training split, its second view the mirror image"
SHIFTED = (
    "rows, views, classes: row i is sample i of the training split, its views are {images}, seen from {offsets} pixels"
    " further down and, changing faster, further to the right, with the nearest pixel for those outside"
)
SAMPLES_AT_ONCE = 10_000
"""The number of samples whose rows are collected before they are written."""


@dataclass(frozen=True)
class Source:
    """The origin of stored logits (teacher, data, number format); logits of any other origin are rejected."""

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

    @property
    def kind(self) -> torch.dtype:
        """The stored dtype."""
        return torch.float16 if self.dtype.startswith("float16") else torch.float32

    @property
    def file(self) -> str:
        """The name of the file with the rows."""
        return f"logits.f{8 * self.kind.itemsize}"


def teacher_logits(teacher: nn.Module, data: Data, outputs: Path) -> Tensor:
    """The teacher's logits of the training split, (samples * views, classes): row i is view i of `Split`.

    They are float32 or, if images are shifted, so that there are many views, float16: off by at most one part in 2048
    (by 2^-25 next to zero). They are memory-mapped from the store under `outputs`, and computed first if it lacks them
    or is damaged, by one process at a time. Raises UserError if one is too large for float16, and Interrupted when
    stopped from outside: views that are computed by then are kept.
    """
    source = _source(teacher, data)
    folder = outputs / "logits" / source.key
    with file_lock(folder):
        folder.mkdir(exist_ok=True)
        damage = _damage(folder, source, data)
        if damage is not None:
            log.log(logging.INFO if damage == "absent" else logging.WARNING, "logit store %s: %s", folder, damage)
            _build(folder, source, teacher, data)
            damage = _damage(folder, source, data)
            if damage is not None:
                raise OSError(f"logit store {folder}: {damage}, although it was written just now")
        # The single views are no longer needed.
        shutil.rmtree(_views_folder(folder), ignore_errors=True)
    return _mapped(folder, source).flatten(0, 1).to(data.train.images.device)


def _source(teacher: nn.Module, data: Data) -> Source:
    train = data.train
    teacher_sha256 = tensors_sha256(teacher.state_dict())
    source = Source(teacher_sha256, data.fingerprint, len(train), train.views, data.classes)
    if not train.shift:
        return source
    images = "the image" if train.mirror == "none" else "the image and then its mirror image"
    offsets = ", ".join(map(str, train.offsets))
    return replace(source, order=SHIFTED.format(images=images, offsets=offsets), dtype="float16 little endian")


def _build(folder: Path, source: Source, teacher: nn.Module, data: Data) -> None:
    manifest = folder / "manifest.json"
    # The manifest vouches for the rows, so it is removed first and written last.
    manifest.unlink(missing_ok=True)
    views = _views(_views_folder(folder), source, teacher, data)
    rows = folder / source.file
    write_atomically(rows, lambda path: _write_rows(path, source, views))
    stored = _mapped(folder, source)
    write_json(
        manifest,
        asdict(source) | {"sha256": sha256_of(rows), "teacher_train_error_percent": _error_percent(stored, data)},
    )


def _views_folder(folder: Path) -> Path:
    """The folder of finished views, a file with its own hash for each, until all are merged into rows."""
    return folder / "views"


def _views(folder: Path, source: Source, teacher: nn.Module, data: Data) -> list[Tensor]:
    """The logits (rows, classes) of every view; those that an interrupted pass left in `folder` are reused."""
    left = [_left(folder, source, number) for number in range(source.views)]
    missing = [number for number, view in enumerate(left) if view is None]
    found = source.views - len(missing)
    if found:
        log.info("logit store %s: %d of %d views were computed before", folder.parent, found, source.views)
    views = {number: view for number, view in enumerate(left) if view is not None}
    with console.progress_bar("teacher's logits", source.rows * source.views) as progress:
        progress.advance(source.rows * found)
        for number in missing:
            done = source.rows * len(views)
            try:
                view = _view(teacher, data, source, number, lambda rows, done=done: progress.advance(done + rows))
            except KeyboardInterrupt as stop:
                raise Interrupted(
                    f"teacher's logits: stopped after {len(views)} of {source.views} views; the same command goes on"
                ) from stop
            save_tensors(_file(folder, number), {"logits": view}, _header(source, number))
            views[number] = view
    return [views[number] for number in range(source.views)]


def _view(teacher: nn.Module, data: Data, source: Source, number: int, answered: Callable[[int], object]) -> Tensor:
    logits = logits_of_view(teacher, data.train, number, answered=answered).float().cpu()
    stored = logits.to(source.kind)
    if (stored.isinf() & logits.isfinite()).any():
        raise UserError(
            f"dataset.shift: {data.train.shift} is not possible with a teacher whose logits reach"
            f" {logits.abs().max():.3g}, since they are stored as float16, which ends at 65504; allowed: 0"
        )
    return stored.contiguous()


def _left(folder: Path, source: Source, number: int) -> Tensor | None:
    """The logits of a view from an interrupted pass; None if there are none that can be trusted."""
    file = _file(folder, number)
    try:
        tensors, header = load_tensors(file)
    except FileNotFoundError:
        return None
    except DamagedTensors as damage:
        log.warning("logit store: %s, computed again", damage)
        return None
    if header != _header(source, number):
        log.warning("logit store: %s was made from another teacher, data set or version, computed again", file)
        return None
    return tensors["logits"]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.safetensors"


def _header(source: Source, number: int) -> dict[str, Any]:
    return asdict(source) | {"view": number}


def _write_rows(path: Path, source: Source, views: Sequence[Tensor]) -> None:
    with path.open("wb") as file:
        for samples in zip(*(view.split(SAMPLES_AT_ONCE) for view in views), strict=True):
            rows = torch.stack(samples, dim=1).numpy()
            file.write(rows.astype(f"<f{source.kind.itemsize}").tobytes())


def _damage(folder: Path, source: Source, data: Data) -> str | None:
    """The reason why the store cannot be trusted; None if it can."""
    rows, manifest = folder / source.file, folder / "manifest.json"
    if not rows.exists() and not manifest.exists():
        return "absent"
    try:
        written = json.loads(manifest.read_bytes())
        size = rows.stat().st_size
    except (OSError, ValueError) as error:
        return f"damaged ({error}), computed again"
    if not isinstance(written, dict) or any(written.get(key) != value for key, value in asdict(source).items()):
        return "made from another teacher, data set or version, computed again"
    numbers = source.rows * source.views * source.classes
    if size != source.kind.itemsize * numbers or sha256_of(rows) != written.get("sha256"):
        return "damaged (its rows are not those that were written), computed again"
    if _error_percent(_mapped(folder, source), data) != written.get("teacher_train_error_percent"):
        return "out of order (the teacher's accuracy through it has changed), computed again"
    return None


def _mapped(folder: Path, source: Source) -> Tensor:
    """The rows (rows, views, classes), memory-mapped."""
    size = source.rows * source.views * source.classes
    flat = torch.from_file(str(folder / source.file), shared=False, size=size, dtype=source.kind)
    return flat.view(source.rows, source.views, source.classes)


def _error_percent(logits: Tensor, data: Data) -> float:
    wrong = (logits.argmax(dim=2) != data.train.labels.cpu().unsqueeze(1)).sum().item()
    return 100.0 * wrong / (len(data.train) * data.train.views)
