"""What Hydra finds of kdx: it takes launchers only from this namespace package."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from kdx.launchers.ray import RayTasks


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
