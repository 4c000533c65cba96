"""kdx's own Hydra launchers and sweeper; `hydra_plugins/` registers them with Hydra."""
