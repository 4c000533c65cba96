"""Hydra launcher `ray`: the jobs of a sweep as tasks of a Ray cluster, each with its share of cores and GPUs.

It replaces hydra-ray-launcher, which needs cloudpickle < 3, while joblib needs a newer one.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

# Environment variables to pass on to processes on other machines.
_ENVIRONMENT = ("KDX_DATA", "KDX_OUTPUTS", "KDX_PROGRESS", "PYTHONPATH")


class RayTasks(Launcher):
    """Runs every job as one Ray task; if a job's process dies, only that job fails."""

    def __init__(self, address: str | None, cpus_per_job: int | None, gpus_per_job: float | None) -> None:
        self.address = address
        self.cpus, self.gpus = cpus_per_job, gpus_per_job

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context, task function and configuration."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and wait for all of them, whether they succeed or fail."""
        import ray

        # A new local instance, if there is no running cluster, needs no dashboard.
        options: dict[str, Any] = {} if self.address else {"include_dashboard": False}
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        ray.init(self.address, logging_level=logging.WARNING, runtime_env={"env_vars": environment}, **options)
        try:
            cpus, gpus = share(ray.cluster_resources(), len(job_overrides), self.cpus, self.gpus)
            # A job that is run again finds its checkpoint, but whoever killed it (memory) would do so again.
            task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_job)
            state, here = Singleton.get_state(), Path.cwd()
            running = [
                task.remote(list(words), number, here, state, self.hydra_context, self.config, self.task_function)
                for number, words in enumerate(job_overrides, initial_job_idx)
            ]
            try:
                return [_result(each) for each in running]
            except KeyboardInterrupt:
                for each in running:
                    ray.cancel(each)
                ray.wait(running, num_returns=len(running), timeout=30)
                raise
        finally:
            ray.shutdown()


def share(cluster: Mapping[str, float], jobs: int, cpus: int | None, gpus: float | None) -> tuple[int, float]:
    """The cores and GPUs of one job: `cpus` and `gpus` if given, else an equal share and one GPU if there is any."""
    if gpus is None:
        gpus = 1 if cluster.get("GPU", 0) >= 1 else 0
    if cpus is None:
        cores, nodes = int(cluster["CPU"]), sum(key.startswith("node:") and "__" not in key for key in cluster)
        at_once = max(1, min(jobs, int(cluster["GPU"] // gpus) if gpus else cores))
        # A job lies on one node.
        cpus = max(1, min(cores // at_once, cores // max(1, nodes)))
    return cpus, gpus


def _result(running: Any) -> JobReturn:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(running)
    except RayError as error:
        failed = JobReturn(status=JobStatus.FAILED)
        failed.return_value = error
        return failed


def _job(
    overrides: list[str],
    number: int,
    folder: Path,
    state: dict[Any, Any],
    hydra_context: HydraContext,
    config: DictConfig,
    task_function: TaskFunction,
) -> JobReturn:
    """One job in a Ray process, in the folder where the sweep was started."""
    os.chdir(folder)
    Singleton.set_state(state)
    setup_globals()
    sweep_config = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(sweep_config):
        sweep_config.hydra.job.id = sweep_config.hydra.job.num = number
    HydraConfig.instance().set_config(sweep_config)
    return run_job(
        hydra_context=hydra_context,
        config=sweep_config,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
