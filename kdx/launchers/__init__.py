"""Hydra launchers of our own; `hydra_plugins/` makes them known to Hydra."""
