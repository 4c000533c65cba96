"""Hydra launcher `fused`: jobs of a sweep that differ only in numbers are trained as one program."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from kdx.config.schema import Config, FusedSettings
from kdx.sweep.job_list import task_of


class FusedJobs(Launcher):
    """Trains each group of jobs that can be combined as one program, and all others one by one, in this process."""

    def __init__(self, **settings: Any) -> None:
        self.settings = FusedSettings.model_validate(settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context, task function and configuration."""
        self.hydra_context, self.config = hydra_context, config
        self.task_function: Callable[..., Any] = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, group by group; each returns what Hydra's own launcher would return."""
        # Imported here, because it imports torch.
        from kdx.config.compose import to_config
        from kdx.sweep.grouping import groups

        setup_globals()
        composed = [self._composed(words, number) for number, words in enumerate(job_overrides, initial_job_idx)]
        configs = [
            to_config(OmegaConf.masked_copy(job, [str(key) for key in job if key != "hydra"])) for job in composed
        ]
        returned: dict[int, JobReturn] = {}
        for group in groups(configs):
            outcomes = self._together([configs[index] for index in group], initial_job_idx + group[0])
            for index, outcome in zip(group, outcomes, strict=True):
                returned[index] = run_job(
                    hydra_context=self.hydra_context,
                    task_function=partial(self.task_function, outcome=outcome),
                    config=composed[index],
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
        return [returned[index] for index in range(len(composed))]

    def _composed(self, words: Sequence[str], number: int) -> DictConfig:
        job = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
        with open_dict(job):
            job.hydra.job.id = job.hydra.job.num = number
        return job

    def _together(self, configs: Sequence[Config], number: int) -> list[Path | Exception | None]:
        """The run folder or the failure of each job, and None for jobs that still have to be run one by one."""
        from kdx.sweep.fused_runs import run_fused
        from kdx.sweep.job_records import skip_reason
        from kdx.sweep.resources import acquire_gpu

        folder = Path(self.config.hydra.sweep.dir)
        # If these jobs must not start, each records that itself.
        if len(configs) < 2 or task_of(folder, number) != "student" or skip_reason(configs[0], folder):
            return [None] * len(configs)
        with acquire_gpu(folder, number, configs[0].device.kind):
            return run_fused(configs, self.settings.way, self.settings.max_models)
