"""The folders of runs and teachers: where they are, whether they are finished, their lock, metrics and log."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdx.config.schema import Config
from kdx.device.machine import commit, kdx_source
from kdx.errors import UserError
from kdx.runs.identity import run_id, teacher_id
from kdx.storage import checksums
from kdx.storage.checksums import METRICS
from kdx.storage.files import json_text, make_folder, write_text
from kdx.storage.lock import file_lock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run or one teacher."""

    path: Path

    @property
    def log_file(self) -> Path:
        """The run's log file."""
        return self.path / "kdx.log"

    @property
    def finished(self) -> bool:
        """Whether `metrics.json`, which is written last, exists and all result files are unchanged.

        Raises WrittenLater if a later version of kdx wrote them.
        """
        return (self.path / METRICS).exists() and self.damage() is None

    def damage(self) -> str | None:
        """The reason why the results of a finished folder are damaged; None if they are intact or there are none.

        Raises WrittenLater if a later version of kdx wrote them.
        """
        if not (self.path / METRICS).exists():
            return None
        try:
            self.metrics()
        except checksums.WrittenLater:
            raise
        except UserError as error:
            return str(error)
        return checksums.damage(self.path)

    def clear_unless_finished(self, *, repeat: bool = False) -> bool:
        """Whether there are results to be used; results that are damaged, or to be repeated, are removed.

        Raises WrittenLater if a later version of kdx wrote them.
        """
        if not (self.path / METRICS).exists():
            return False
        reason = self.damage()
        if reason:
            log.warning("%s; this is repeated", reason.partition("; repeat the run")[0])
        elif not repeat:
            return True
        self.clear()
        return False

    def reservations(self, latency_seconds: float = 0.0) -> list[str]:
        """Warnings about using these results for a new request, one line each.

        They lack the latency that is asked for, or they were made by another kdx source, one of the two with
        uncommitted changes.
        """
        metrics, found = self.metrics(), []
        if latency_seconds and metrics.get("latency_ms") is None and not self._timed():
            found.append("it was made with device.latency_seconds=0 and tells no latency; `kdx bench` measures it")
        made_by, source = metrics.get("kdx_source"), kdx_source()
        if made_by not in (None, source) and "-dirty" in f"{metrics.get('commit')} {commit()}":
            found.append(f"it was made by another source of kdx ({metrics.get('commit') or 'without a commit'})")
        return found

    def _timed(self) -> bool:
        config = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        return bool(config["device"]["latency_seconds"])

    def metrics(self) -> dict[str, Any]:
        """The figures of the finished run; raises UserError if there are none or the file is damaged."""
        path = self.path / METRICS
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.path}: not a finished run, it has no metrics.json") from None
        except ValueError:
            content = None
        if not isinstance(content, dict) or not content:
            reason = "it is not a JSON object"
        else:
            reason = checksums.flaw(path) or checksums.misfit(self.path, content)
            if reason is None:
                return content
        raise UserError(f"{path} is damaged: {reason}; repeat the run with force=true or delete its folder")

    def lock(self, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Lock the folder against other processes; see `file_lock`."""
        return file_lock(self.path, wait=wait)

    def clear(self) -> None:
        """Remove everything in the folder."""
        if self.path.exists():
            shutil.rmtree(self.path)
        make_folder(self.path)

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration to `config.yaml`."""
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)

    def write_metrics(self, figures: Mapping[str, Any]) -> None:
        """Write the hashes of all results, then `metrics.json`, which marks the folder as finished."""
        text = json_text(figures)
        checksums.seal(self.path, {METRICS: text})
        write_text(self.path / METRICS, text)

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Within the context, append kdx's log to `kdx.log`, and show warnings on stderr."""
        make_folder(self.path)
        logger = logging.getLogger("kdx")
        file = logging.FileHandler(self.log_file, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers: list[logging.Handler] = [file]
        # Inside another folder's context stderr already has a handler.
        if not any(type(handler) is logging.StreamHandler for handler in logger.handlers):
            screen = logging.StreamHandler(sys.stderr)
            screen.setLevel(logging.WARNING)
            screen.setFormatter(logging.Formatter("kdx: %(message)s"))
            handlers.append(screen)
        level = logger.level
        logger.setLevel(logging.INFO)
        for handler in handlers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for handler in handlers:
                logger.removeHandler(handler)
            file.close()
            logger.setLevel(level)


def run_folder(config: Config) -> RunFolder:
    """The folder of the run that `config` describes."""
    names = config.dataset.name, config.student.name, str(config.method["name"])
    return RunFolder(Path(config.outputs, "runs", *names, run_id(config)))


def teacher_folder(config: Config) -> RunFolder:
    """The folder of the teacher that `config` describes, shared by all runs that need the same one."""
    return RunFolder(Path(config.outputs, "teachers", teacher_id(config)))
