"""Runs of a table through one of Hydra's launchers (processes, Ray, Slurm), like the jobs of a sweep."""

import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kdx import console
from kdx.config.compose import Job as SweepJob
from kdx.errors import RunFailed
from kdx.reproduce.jobs import Job
from kdx.runs.folder import RunFolder, teacher_folder
from kdx.runs.identity import teacher_id
from kdx.sweep.job_list import Task
from kdx.sweep.job_records import RECORD
from kdx.sweep.multirun import launch

LOOK_SECONDS = 1.0


def train_launched(jobs: Sequence[Job], launcher: Sequence[str], name: str) -> dict[str, Exception]:
    """Train the unfinished runs of the table `name`; return the failures by run id.

    Their teachers are trained first, one job each, so that no job waits for another one's teacher. `launcher` chooses
    and sets the launcher. A line on stderr shows how many jobs are done and the time left.
    """
    due = list({job.run: job for job in jobs if job.subject != "network" and not job.finished}.values())
    students = [job for job in due if job.subject != "teacher"]
    failures = _launched(_of_teachers(due), launcher, f"{name}, teachers", "teachers")
    return failures | _launched(students, launcher, name, "student")


def _of_teachers(jobs: Sequence[Job]) -> list[Job]:
    """The smallest list of jobs that need all teachers that are not trained yet."""
    chosen, known = [], set[str]()
    for job in jobs:
        each = [config for config in job.config.for_each_teacher() if config.teacher.checkpoint is None]
        missing = {teacher_id(config) for config in each if not teacher_folder(config).finished}
        if missing - known:
            known |= missing
            chosen.append(job)
    return chosen


def _launched(jobs: Sequence[Job], launcher: Sequence[str], title: str, task: Task) -> dict[str, Exception]:
    if not jobs:
        return {}
    # Hidden, and gone at the end, because the table is what is left of it.
    folder = RunFolder(Path(jobs[0].config.outputs, "sweeps", f".{title.replace('/', '-').replace(', ', '-')}"))
    with _watched(folder.path, title, len(jobs)):
        records = launch([SweepJob(list(job.words), job.config) for job in jobs], launcher, folder, task)
        shutil.rmtree(folder.path)
    # A teacher's failure is reported by its students.
    return {
        job.run: RunFailed(record.error)
        for job, record in zip(jobs, records, strict=True)
        if record.error and (job.subject == "teacher") == (task == "teachers")
    }


@contextmanager
def _watched(folder: Path, title: str, total: int) -> Iterator[None]:
    """Show how many jobs have left a record, wherever they run; their own progress is not shown."""
    ended, before = threading.Event(), os.environ.get(console.QUIET)

    def watch(progress: console.ProgressBar) -> None:
        progress.advance(0)
        while not ended.wait(LOOK_SECONDS):
            progress.advance(len(list(folder.glob(f"*/{RECORD}"))))

    for record in folder.glob(f"*/{RECORD}"):
        # Records of an earlier launch would be counted.
        record.unlink()
    try:
        # Opened first, since it is the one that is shown.
        with console.progress_bar(title, total) as progress:
            os.environ[console.QUIET] = "none"
            watcher = threading.Thread(target=watch, args=(progress,))
            watcher.start()
            try:
                yield
            finally:
                ended.set()
                watcher.join()
            progress.advance(total)
    finally:
        os.environ.pop(console.QUIET, None)
        if before is not None:
            os.environ[console.QUIET] = before
