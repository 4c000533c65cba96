"""How each job of a sweep ended, as it is written into the sweep's folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from kdx.config.schema import Config

RECORD = "job.json"


@dataclass(frozen=True)
class JobRecord:
    """How one job of a sweep ended: the folder of its run, or the reason why there is none."""

    number: int
    overrides: list[str]
    run: str | None
    error: str | None
    started: bool = True


def skip_reason(config: Config, folder: Path) -> str | None:
    """The reason why a job must not start, with fail_fast the failure of another one; else None."""
    # The folder is all that the processes of a launcher share.
    records = read_records(folder) if config.sweep.fail_fast else []
    failed = [record.number for record in records if record.error and record.started]
    return f"not started, since job {failed[0]} failed (sweep.fail_fast=true)" if failed else None


def read_records(folder: Path) -> list[JobRecord]:
    """The records in a sweep's folder, in the order of the jobs."""
    records = [JobRecord(**json.loads(path.read_bytes())) for path in folder.rglob(RECORD)]
    return sorted(records, key=lambda record: record.number)
