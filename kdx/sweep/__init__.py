"""Many runs: as jobs of Hydra's launchers, or fused; `hydra_plugins/` registers kdx's own launchers."""
