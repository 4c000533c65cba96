"""Where the jobs of a sweep run: the launcher, how many jobs at once, with how many cores, on which GPU."""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdx.config.compose import Job, launcher_settings
from kdx.config.schema import Config, FusedSettings
from kdx.config.validation import settings_from
from kdx.device.machine import check_threads
from kdx.errors import UserError
from kdx.storage.lock import file_lock

_KEY = "hydra.launcher"
# The modules that a launcher needs, and the extra that brings them.
_NEEDS = {
    "ray": ("ray", "ray"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}

# The launchers whose jobs may run on another machine.
ELSEWHERE = ("RayLauncher", "SlurmLauncher")


def check_launcher(overrides: Sequence[str]) -> None:
    """Raise UserError, which names the extra to install, if the chosen launcher is not installed."""
    for word in overrides:
        key, _, launcher = word.partition("=")
        module, extra = _NEEDS.get(launcher, ("", "")) if key == "hydra/launcher" else ("", "")
        if module and find_spec(module) is None:
            raise UserError(
                f"hydra/launcher: '{launcher}' is not installed; it comes with the extra '{extra}':"
                f" pip install 'kdx[{extra}]', or in a checkout scripts/install {extra}"
            )


def check_here(overrides: Sequence[str], configs: Iterable[Config]) -> None:
    """Raise UserError for a wrong launcher setting, and for jobs with more threads than this machine has cores.

    With Ray and Slurm the threads are checked where the job runs, which may be a larger machine.
    """
    if _kind(launcher_settings(overrides)) not in ELSEWHERE:
        for config in configs:
            check_threads(config.device.threads)


def divide_cores(overrides: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """The overrides that give each process of the launcher its share of cores and GPUs; the user's own settings stay.

    There are none for the built-in and the fused launcher, whose one process gets everything, and for Ray and Slurm,
    which allocate by themselves. Raises UserError for a setting of the launcher that is not allowed.
    """
    from joblib import cpu_count

    launcher = launcher_settings(overrides)
    cores, gpus = cpu_count(), _gpus(jobs)
    match _kind(launcher):
        case "JoblibLauncher":
            if launcher["n_jobs"] == 0:
                raise UserError(
                    f"{_KEY}.n_jobs: 0 is not allowed; allowed: a number of jobs, or -1 for one on each core"
                )
            at_once, words = _joblib_at_once(launcher["n_jobs"], len(jobs), gpus or cores, cores)
        case "LocalLauncher":
            # This launcher starts all jobs at once, and hides GPUs that are not requested.
            at_once, words = len(jobs), []
            if gpus and launcher["gpus_per_node"] is None:
                words = [f"hydra.launcher.gpus_per_node={gpus}"]
        case "FusedLauncher":
            settings_from(FusedSettings, {key: value for key, value in launcher.items() if key != "_target_"}, _KEY)
            return []
        case _:
            return []
    given = launcher.get("cpus_per_task")
    if given is not None and not given > 0:
        raise UserError(f"{_KEY}.cpus_per_task: {given} is not allowed; allowed: a whole number >= 1 or null")
    threads = min(given or max(1, cores // at_once), cores)
    if all(job.config.device.threads is None for job in jobs):
        words.append(f"device.threads={threads}")
    return words


def _kind(launcher: Mapping[str, Any]) -> str:
    """The name of the launcher's class."""
    return str(launcher["_target_"]).rpartition(".")[2]


def _joblib_at_once(n_jobs: int, jobs: int, default: int, cores: int) -> tuple[int, list[str]]:
    # -1, joblib's default, would put as many jobs as there are cores on one GPU.
    if n_jobs == -1:
        at_once = min(jobs, default)
        return at_once, [f"hydra.launcher.n_jobs={at_once}"]
    return max(1, min(jobs, n_jobs if n_jobs > 0 else cores + 1 + n_jobs)), []


def _gpus(jobs: Sequence[Job]) -> int:
    """The number of GPUs that the jobs may use."""
    import torch

    return torch.cuda.device_count() if any(_may_use_gpu(job.config.device.kind) for job in jobs) else 0


def _may_use_gpu(kind: str) -> bool:
    return kind in ("auto", "cuda")


@contextmanager
def acquire_gpu(folder: Path, job: int, kind: str) -> Iterator[int | None]:
    """Choose one of several GPUs for this process: a free one, else a shared one; None if there are fewer than two.

    Locks in `folder`, which the processes of the sweep share, tell which ones are taken.
    """
    import torch

    count = torch.cuda.device_count() if _may_use_gpu(kind) else 0
    if count < 2:
        yield None
        return
    for index in range(count):
        with file_lock(folder / f"gpu-{platform.node()}-{index}", wait=False) as is_free:
            if is_free:
                torch.cuda.set_device(index)
                yield index
                return
    torch.cuda.set_device(job % count)
    yield job % count
