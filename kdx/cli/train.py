"""`kdx train`: one run, or a sweep with -m."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx.cli.arguments import split_options
from kdx.device.machine import check_threads, set_omp_wait_policy
from kdx.errors import log_failures

if TYPE_CHECKING:
    from kdx.sweep.job_records import JobRecord


def main(words: Sequence[str]) -> int:
    """`kdx train`: one run, or a sweep with -m; returns the exit code."""
    options, overrides = split_options(words, ("-m", "--multirun"))
    return _sweep(overrides) if options else _single(overrides)


def _help(words: Sequence[str]) -> str:
    """The help text: all choices, and all keys with the values that these arguments give."""
    from kdx.cli.help import train_help

    return train_help([word for word in words if not word.startswith("-")])


HELP = _help


def _single(overrides: list[str]) -> int:
    from kdx.checks import check_method
    from kdx.config.compose import compose_config
    from kdx.runs.folder import run_folder

    config = compose_config(overrides)
    check_threads(config.device.threads)
    # After mistakes are told, before torch is imported.
    set_omp_wait_policy()
    for line in check_method(config, overrides):
        print(f"kdx: {line}", file=sys.stderr)
    log_file = run_folder(config).log_file
    from kdx.cli.run_tables import print_run
    from kdx.experiment import run

    with log_failures(log_file):
        folder = run(config)
    print_run(folder)
    print(folder)
    return 0


def _sweep(overrides: list[str]) -> int:
    from kdx.analysis.summary import groups_of, write_failures, write_summary
    from kdx.cli.comparison import print_comparison
    from kdx.cli.summary import print_summary
    from kdx.storage.checksums import seal, unseal
    from kdx.sweep.multirun import sweep

    # Before torch is imported, here and in the processes of a launcher.
    set_omp_wait_policy()
    folder, records = sweep(overrides)
    finished = [Path(record.run) for record in records if record.run]
    failed = [record for record in records if record.error]
    groups = groups_of(runs_of(records))
    unseal(folder)
    write_summary(folder / "summary.csv", groups)
    write_failures(
        folder / "failed.csv",
        [{"job": one.number, "overrides": " ".join(one.overrides), "reason": one.error} for one in failed],
    )
    seal(folder)
    if finished:
        print_comparison(finished)
        print_summary(groups)
    print(folder)
    for record in failed:
        ended = "failed" if record.started else "skipped"
        print(f"kdx: job {record.number} ({' '.join(record.overrides)}) {ended}: {record.error}", file=sys.stderr)
    return 1 if failed else 0


def runs_of(records: "Sequence[JobRecord]") -> list[Path | dict[str, Any]]:
    """The runs of a sweep's jobs, in order: the folder of a finished run, the settings by dotted key of another.

    Jobs with the same configuration count as one run.
    """
    from kdx.config.compose import compose_sweep
    from kdx.runs.folder import run_folder
    from kdx.runs.reader import flat

    runs: dict[Path, Path | dict[str, Any]] = {}
    for record in records:
        if record.run:
            runs[Path(record.run)] = Path(record.run)
        else:
            (job,) = compose_sweep(record.overrides)
            runs.setdefault(run_folder(job.config).path, flat(job.config.model_dump(mode="json")))
    return list(runs.values())
