"""Hydra's sweeper `listed`: hands the jobs that kdx has written down to whatever launcher is chosen."""

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
    """What the job of this number is to make, in the sweep's folder."""
    return json.loads((folder / JOBS).read_bytes())[number]["task"]


class ListedJobs(Sweeper):
    """Launches all jobs at once; so jobs need have nothing in common, and are exactly those that were checked."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra knows, and make the launcher."""
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
            # Hydra raises here what a job raised.
            _: Any = job.return_value
        return [returned]
