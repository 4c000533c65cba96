"""Sweeps: every job is checked first, then Hydra runs them, and each leaves a record of how it ended."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kdx.compose import CONFIG_NAME, HYDRA_VERSION, check_method, expand, hydra_words, to_config, typed_words
from kdx.errors import UserError, one_line
from kdx.failure import describe, recorded
from kdx.files import write_json
from kdx.groups import conf_folder
from kdx.runs import run_folder

RECORD = "job.json"


@dataclass(frozen=True)
class JobRecord:
    """How one job of a sweep ended: the folder of its run, or why there is none."""

    number: int
    overrides: list[str]
    run: str | None
    error: str | None


def sweep(overrides: Sequence[str]) -> tuple[Path, list[JobRecord]]:
    """Run all jobs of a sweep; its folder and the records, in the order of the jobs."""
    configs = expand(overrides)
    for config in configs:
        check_method(config)
        run_folder(config)  # finds out whether the teacher's checkpoint is there
    given = [text.partition("=")[2].strip("'\"") for text in overrides if text.startswith("hydra.sweep.dir=")]
    folder = (
        Path(given[-1])
        if given
        else Path(configs[0].outputs, "sweeps", f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}")
    )
    # A folder that an earlier sweep used: its records are not ours.
    for path in folder.rglob(RECORD):
        path.unlink()
    where = [] if given else [f"hydra.sweep.dir={_quoted(str(folder.absolute()))}"]
    main = hydra.main(version_base=HYDRA_VERSION, config_path=str(conf_folder()), config_name=CONFIG_NAME)
    with _command_line(["kdx", "--multirun", *hydra_words(overrides), *where]):
        try:
            main(run_job)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(one_line(error)) from None
    records = [JobRecord(**json.loads(path.read_bytes())) for path in folder.rglob(RECORD)]
    return folder, sorted(records, key=lambda record: record.number)


def run_job(composed: DictConfig) -> dict[str, object]:
    """One job, in whatever process Hydra's launcher starts it: a failure is recorded and the others go on."""
    from kdx.experiment import run

    job = HydraConfig.get()
    number, words = int(job.job.num), typed_words(map(str, job.overrides.task))
    print(f"job {number}: {' '.join(words)}", file=sys.stderr, flush=True)
    config = to_config(composed)
    try:
        with recorded(run_folder(config).log_file):
            done, error = str(run(config)), None
    except Exception as failure:
        done, error = None, describe(failure)
        print(f"kdx: job {number}: {error}", file=sys.stderr, flush=True)
    record = asdict(JobRecord(number, words, done, error))
    write_json(Path(job.runtime.output_dir, RECORD), record)
    return record


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """What `hydra.main` reads: the words, and the wish to get exceptions instead of exits."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = words, "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
