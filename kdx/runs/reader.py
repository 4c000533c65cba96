"""Finding finished runs and reading their files."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kdx.config.datasets import DatasetSettings
from kdx.config.schema import TrainerSettings
from kdx.errors import UserError, nearest, one_line
from kdx.runs.identity import LATER
from kdx.storage import checksums
from kdx.storage.checksums import METRICS

NAMES = ("run_id", "dataset", "method", "student")
TEXTS = frozenset({*NAMES, "teacher", "device", "csr_runtime", "kdx_version", "torch_version"})
AMBIGUOUS_SHOWN = 4
NOT_RECORDED = "not recorded"
"""The text for a fact that was not yet recorded when the run was made."""

Figures = dict[str, Any]


class Unfinished(UserError):
    """A run that has no results yet."""


def finished_run(path_or_id: str, outputs: Path) -> Path:
    """The folder of the finished run with this folder, id, or unique beginning of an id.

    Ids are looked up under `outputs`/runs/<dataset>/<student>/<method>/. Raises UserError if the run is missing,
    ambiguous, unfinished or damaged.
    """
    folder = _folder(path_or_id)
    # A folder may be called like the beginning of an id: it is meant when it holds a run.
    if folder is None or not _has_metrics(folder):
        folder = _by_id(path_or_id, outputs) or folder
    if folder is None:
        raise _unknown_run(path_or_id, outputs)
    read_figures(folder)
    return folder


def read_figures(run: Path) -> Figures:
    """The content of metrics.json: names as texts, all else numbers or None; raises UserError if missing or damaged."""
    path = run / METRICS
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise Unfinished(f"run: {run} is not a finished run, it has no {METRICS}") from None
    except OSError as error:
        raise UserError(f"run: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise _damaged(path, "it is not JSON") from None
    check_seal(path)
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    reason = checksums.misfit(run, content)
    if reason:
        raise _damaged(path, reason)
    for name in NAMES:
        if content.get(name) is None:
            raise _damaged(path, f"{name} is missing")
    for key, value in content.items():
        expected = str if key in TEXTS else (int, float, str)
        if value is not None and not isinstance(value, expected):
            raise _damaged(path, f"{key} is {value!r}")
    return content


def number(figures: Figures, key: str) -> float | None:
    """A numerical figure, or None if there is none; raises UserError if it is something else."""
    value = figures.get(key)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise UserError(f"run: {figures['run_id']}: {METRICS} is damaged: {key} is {value!r}, expected a number")


def read_settings(run: Path) -> dict[str, Any]:
    """The settings of config.yaml by dotted key (lists are values); raises UserError if missing or damaged.

    Settings of the trainers, the data set and the method that came later than the run have the value at which it is
    what it was, so that it counts as one with later runs of the same id.
    """
    path = run / "config.yaml"
    check_seal(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"run: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise _damaged(path, "it is not YAML") from None
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no settings")
    settings = flat(content)
    return _later_settings(settings) | settings


def _later_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    groups = {"dataset": DatasetSettings, "trainer": TrainerSettings}
    groups |= {f"{key}.trainer": TrainerSettings for key in ("teacher", "teacher2", "teacher3")}
    later = {
        f"{group}.{name}": field.default
        for group, kind in groups.items()
        if any(key.startswith(f"{group}.") for key in settings)
        for name, field in kind.model_fields.items()
        if not field.is_required()
    }
    parts = settings.get("method.parts") or ()
    return later | {f"method.{key}": value for part in parts for key, value in LATER.get(part, {}).items()}


def read_table(
    path: Path, texts: frozenset[str], numbers: frozenset[str], optional: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """The rows of a CSV file by column, `numbers` as float; no rows if there is no file; UserError if it is damaged.

    Numbers that are `optional` are None if the cell is empty or the file has no such column.
    """
    check_seal(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            {name: row[name] for name in texts}
            | {name: float(row[name]) for name in numbers}
            | {name: float(row[name]) if row.get(name) else None for name in optional}
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"run: {path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise _damaged(path, f"expected the columns {', '.join(sorted(texts | numbers))}") from None


def execution_text(figures: Figures) -> str:
    """How a run was executed, as far as that is recorded, such as "cpu, 1 thread, fp32, eager"."""
    threads = figures.get("threads")
    words = [figures.get("device"), threads and f"{threads} thread{'' if threads == 1 else 's'}"]
    words += [figures.get("precision"), figures.get("execution")]
    return ", ".join(str(word) for word in words if word and word != NOT_RECORDED) or "an unknown device"


def check_seal(path: Path) -> None:
    """Raise UserError if a file of a finished run is missing or has changed."""
    reason = checksums.flaw(path)
    if reason:
        raise _damaged(path, reason)


def flat(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as one mapping by dotted key; lists are values."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _folder(given: str) -> Path | None:
    try:
        path = Path(given).expanduser()
        return path if given and path.is_dir() else None
    except (OSError, RuntimeError):  # Too long for a name, or nobody's home.
        return None


def _has_metrics(folder: Path) -> bool:
    try:
        return (folder / METRICS).exists()
    except OSError:
        return False


def finished_runs(outputs: Path) -> list[Path]:
    """The folders of all finished runs, sorted."""
    return [path for path in _run_folders(outputs) if _has_metrics(path)]


def _run_folders(outputs: Path) -> list[Path]:
    return sorted(path for path in outputs.glob("runs/*/*/*/[!.]*") if path.is_dir())


def _by_id(run_id: str, outputs: Path) -> Path | None:
    folders = [path for path in _run_folders(outputs) if run_id and path.name.startswith(run_id)]
    exact = [path for path in folders if path.name == run_id]
    found = exact or folders
    if len(found) > 1:
        shown = ", ".join(str(path) for path in found[:AMBIGUOUS_SHOWN])
        more = f" and {len(found) - AMBIGUOUS_SHOWN} more" if len(found) > AMBIGUOUS_SHOWN else ""
        raise UserError(f"run: '{run_id}' is ambiguous; allowed: one of {shown}{more}")
    return found[0] if found else None


def _unknown_run(given: str, outputs: Path) -> UserError:
    finished = finished_runs(outputs)
    runs = outputs / "runs"
    if not finished:
        return UserError(f"run: '{given}' is not known; allowed: the folder of a finished run ({runs} holds none)")
    hint = nearest(given, [path.name for path in finished]) or nearest(given, [str(path) for path in finished])
    allowed = f"the folder, the id or the beginning of the id of a finished run ({runs} holds {len(finished)})"
    return UserError(f"run: '{given}' is not known; {hint}allowed: {allowed}")


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"run: {path} is damaged: {why}; repeat the run with force=true or delete its folder")


class Damaged(ValueError):
    """A file is missing, truncated or has wrong content; the message is the reason, without the path."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(why)
        self.path = path


class Record(BaseModel):
    """A part of a result file; unknown fields, as of a later version, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


R = TypeVar("R", bound=BaseModel)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Check the file's hash, and turn any error within the context into Damaged."""
    reason = checksums.flaw(path)
    if reason:
        raise Damaged(path, reason)
    try:
        yield
    except Damaged:
        raise
    # UserError, pydantic's, JSON's and Unicode's errors are ValueErrors.
    except (OSError, ValueError, csv.Error) as error:
        raise Damaged(path, _why(error)) from error


def read_record(path: Path, kind: type[R]) -> R:
    """The content of a JSON file as a record; raises Damaged."""
    with reading(path):
        return kind.model_validate_json(path.read_bytes())


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """The rows of a CSV file as records; an empty cell has its field's default; raises Damaged."""
    required = [key for key, field in kind.model_fields.items() if field.is_required()]
    with reading(path):
        return [
            kind.model_validate({key: text for key, text in line.items() if text != ""})
            for line in read_lines(path, required)
        ]


def read_lines(path: Path, required: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file as texts; raises Damaged if a `required` column or a cell is missing."""
    with reading(path), path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file, strict=True)
        if not table.fieldnames:
            raise ValueError("it has no header")
        missing = set(required).difference(table.fieldnames)
        if missing:
            raise ValueError(f"it lacks the columns {', '.join(sorted(missing))}")
        lines = list(table)
        for number, line in enumerate(lines, 1):
            if None in line or None in line.values():
                raise ValueError(f"line {number} below the header has not as many cells as it")
        return lines


def _why(error: BaseException) -> str:
    match error:
        case OSError(strerror=str(text)):
            return text
        case ValidationError():
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            return f"{where}: {first['msg']}".removeprefix(": ")
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case _:
            return one_line(error)
