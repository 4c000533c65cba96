"""Hydra sweeper `listed`: passes the jobs that kdx has written to a file to the chosen launcher."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

JOBS = "jobs.json"
"""In the sweep's folder: for each job its overrides, in Hydra's spelling, and what it is to make."""

Task = Literal["student", "teachers"]
"""What a job makes: a run, or all teachers of its configuration."""


def task_of(folder: Path, number: int) -> Task:
    """Whether job `number` of the sweep in `folder` trains its run or only its teachers."""
    return json.loads((folder / JOBS).read_bytes())[number]["task"]


class ListedJobs(Sweeper):
    """Launches exactly the jobs that kdx has checked, which need not have any override in common."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's configuration and make the launcher."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> list[Sequence[JobReturn]]:
        """Launch the jobs; raises what went wrong outside of them."""
        assert self.config is not None, "Hydra calls setup first"
        assert self.launcher is not None, "setup makes it"
        jobs = json.loads(Path(self.config.hydra.sweep.dir, JOBS).read_bytes())
        returned = self.launcher.launch([job["overrides"] for job in jobs], initial_job_idx=0)
        for job in returned:
            # Reading return_value raises the job's exception.
            _: Any = job.return_value
        return [returned]
