"""Sweeps: every job is validated first, then Hydra's launcher runs them, and each records how it ended."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kdx.checks import check_method
from kdx.config.compose import (
    CONFIG_NAME,
    HYDRA_VERSION,
    Job,
    compose_sweep,
    from_hydra,
    in_hydras_spelling,
    quoted,
    to_config,
    to_hydra,
)
from kdx.config.groups import conf_folder
from kdx.config.hydra_keys import is_hydras_word
from kdx.config.schema import Config
from kdx.config.validation import format_value
from kdx.console import QUIET
from kdx.errors import RunFailed, UserError, describe, log_failures, one_line
from kdx.runs.folder import RunFolder, run_folder
from kdx.runs.identity import changes_result, sweep_id
from kdx.storage.files import make_folder, write_json
from kdx.sweep.job_list import JOBS, Task, task_of
from kdx.sweep.job_records import RECORD, JobRecord, read_records, skip_reason
from kdx.sweep.resources import acquire_gpu, check_here, check_launcher, divide_cores


def sweep(overrides: Sequence[str]) -> tuple[Path, list[JobRecord]]:
    """Run all jobs of a sweep; return its folder and the jobs' records, in order.

    The same sweep has the same folder; its finished runs are skipped and its interrupted ones resumed. Raises
    UserError, before the first job starts, if any job is invalid or the launcher is not installed.
    """
    check_launcher(overrides)
    jobs = compose_sweep(overrides)
    folder = _folder(jobs)
    if not any(changes_result(word.partition("=")[0]) for word in jobs[0].overrides):
        raise UserError(
            "-m: nothing says what the runs of the sweep are; allowed: KEY=A,B such as seed=0,1,2 (one run: without -m)"
        )
    check_here(overrides, [job.config for job in jobs])
    without_effect: list[str] = []
    for job in jobs:
        without_effect += check_method(job.config, job.overrides)
        run_folder(job.config)  # raises if the teacher's checkpoint is missing
    for line in dict.fromkeys(without_effect):
        print(f"kdx: {line}", file=sys.stderr)
    return folder.path, launch(jobs, [word for word in overrides if is_hydras_word(word)], folder)


def launch(jobs: Sequence[Job], launcher: Sequence[str], folder: RunFolder, task: Task = "student") -> list[JobRecord]:
    """Run the jobs by Hydra's launcher, which the overrides `launcher` choose and set; return their records, in order.

    `folder` is the sweep's, which all processes share; `task` says whether jobs train their runs or only their
    teachers. Raises UserError for launcher settings that are not allowed.
    """
    share = divide_cores(launcher, jobs)
    own = [word for word in share if not is_hydras_word(word)]
    listed = [{"overrides": in_hydras_spelling([*job.overrides, *own]), "task": task} for job in jobs]
    words = [word for word in (*share, *launcher) if is_hydras_word(word)]
    words += ["hydra/sweeper=listed", f"hydra.sweep.dir={quoted(str(folder.path.absolute()))}"]
    with folder.lock():
        make_folder(folder.path)
        # Records of an earlier launch are removed.
        for path in folder.path.rglob(RECORD):
            path.unlink()
        write_json(folder.path / JOBS, listed)
        broken = _launched(words, folder)
        records = {record.number: record for record in read_records(folder.path)}
        (folder.path / JOBS).unlink()
    # A job has no record if the launcher failed or the job's process was killed.
    unknown = f"it left no record: {broken or 'its process was killed'}"
    return [records.get(number) or JobRecord(number, job.overrides, None, unknown) for number, job in enumerate(jobs)]


def run_job(composed: DictConfig, outcome: Path | Exception | None = None) -> dict[str, object]:
    """Run one job, in whatever process Hydra's launcher starts it; a failure is recorded, and other jobs continue.

    `outcome` is its folder or its failure if the launcher has already run it together with others.
    """
    job = HydraConfig.get()
    number, folder = int(job.job.num), Path(job.sweep.dir)
    words = from_hydra(map(str, job.overrides.task))
    config, task = to_config(composed), task_of(folder, number)
    run, error = None, None if outcome else skip_reason(config, folder)
    started = error is None
    if started:
        how = " (together with others)" if outcome else ""
        if os.environ.get(QUIET) != "none":
            print(f"job {number}{how}: {' '.join(words)}", file=sys.stderr, flush=True)
        try:
            run = str(_ended(config, outcome) if outcome else _run(config, folder, number, task))
        except Exception as failure:
            error = describe(failure)
            print(f"kdx: job {number}: {error}", file=sys.stderr, flush=True)
    record = asdict(JobRecord(number, words, run, error, started))
    write_json(Path(job.runtime.output_dir, RECORD), record)
    return record


def _run(config: Config, folder: Path, number: int, task: Task) -> Path:
    if task == "student":
        from kdx.experiment import run as make
    else:
        from kdx.experiment import train_teachers as make

    with log_failures(run_folder(config).log_file), acquire_gpu(folder, number, config.device.kind):
        return make(config)


def _ended(config: Config, outcome: Path | Exception) -> Path:
    with log_failures(run_folder(config).log_file):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _folder(jobs: Sequence[Job]) -> RunFolder:
    first = jobs[0].config
    for job in jobs:
        for key, value, other in (
            ("outputs", first.outputs, job.config.outputs),
            ("sweep.name", first.sweep.name, job.config.sweep.name),
            ("sweep.fail_fast", first.sweep.fail_fast, job.config.sweep.fail_fast),
        ):
            if value != other:
                raise UserError(
                    f"{key}: {format_value(value)} and {format_value(other)} in one sweep; allowed: one value for all"
                    " jobs"
                )
    return RunFolder(Path(first.outputs, "sweeps", first.sweep.name or sweep_id([job.config for job in jobs])))


def _launched(words: Sequence[str], folder: RunFolder) -> str | None:
    """Let Hydra run the jobs; return the reason if its launcher failed, else None."""
    make_folder(folder.path)
    main = hydra.main(version_base=HYDRA_VERSION, config_path=str(conf_folder()), config_name=CONFIG_NAME)
    with _command_line(["kdx", "--multirun", *to_hydra(words)]):
        try:
            with log_failures(folder.log_file):
                main(run_job)()
        except RunFailed as failure:
            if isinstance(failure.__cause__, HydraException | OmegaConfBaseException):
                raise UserError(one_line(failure.__cause__)) from None
            return describe(failure)
    return None


@contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """Set what `hydra.main` reads: the arguments, and that errors are raised as exceptions."""
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
