"""Trains those runs of a table together that can be, if that is known to be faster."""

import logging
from collections.abc import Sequence

import torch

from kdx.config import Config
from kdx.grouping import groups
from kdx.reproduce.jobs import Job
from kdx.together import run_together

log = logging.getLogger(__name__)


def train_together(jobs: Sequence[Job]) -> dict[str, Exception]:
    """Train together the unfinished students that can be combined; return the failures by run id.

    A run that can be combined with no other is left to be trained alone.
    """
    students = [job for job in jobs if job.of == "student" and is_faster(job.config)]
    due = list({job.run: job for job in students if not job.finished}.values())
    failures: dict[str, Exception] = {}
    for group in groups([job.config for job in due]):
        together = [due[index] for index in group]
        if len(together) < 2:
            continue
        log.warning("%d runs together: %s", len(together), ", ".join(dict.fromkeys(job.row for job in together)))
        outcomes = run_together([job.config for job in together], "auto", None)
        for job, outcome in zip(together, outcomes, strict=True):
            if isinstance(outcome, Exception):
                failures[job.run] = outcome
    return failures


def is_faster(config: Config) -> bool:
    """Whether training together is known to be faster: on a GPU, which one model does not fill; not on a CPU."""
    return config.device.kind in ("auto", "cuda") and torch.cuda.is_available()
