"""What Hydra finds of kdx: it takes launchers and sweepers only from this namespace package."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from kdx.sweep.fused_launcher import FusedJobs
from kdx.sweep.job_list import ListedJobs
from kdx.sweep.ray_launcher import RayTasks


class RayLauncher(RayTasks):
    """`hydra/launcher=ray`."""


@dataclass
class RayLauncherSettings:
    """The address is that of `ray.init`: null finds a running cluster ($RAY_ADDRESS), or starts Ray on this machine."""

    _target_: str = "hydra_plugins.kdx_launchers.RayLauncher"
    address: str | None = None
    cpus_per_job: int | None = None
    gpus_per_job: float | None = None


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherSettings, provider="kdx")


class FusedLauncher(FusedJobs):
    """`hydra/launcher=fused`."""


@dataclass
class FusedLauncherSettings:
    """How many models are trained together at most (null: as many as fit in memory), and how they make a step.

    The values are checked by kdx.sweep.fused_launcher.
    """

    _target_: str = "hydra_plugins.kdx_launchers.FusedLauncher"
    max_models: Any = None
    way: Any = "auto"


ConfigStore.instance().store(group="hydra/launcher", name="fused", node=FusedLauncherSettings, provider="kdx")


class ListedSweeper(ListedJobs):
    """`hydra/sweeper=listed`, which kdx chooses itself."""


@dataclass
class ListedSweeperSettings:
    """It has none."""

    _target_: str = "hydra_plugins.kdx_launchers.ListedSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="listed", node=ListedSweeperSettings, provider="kdx")
