"""The configuration: what `conf/` holds, typed, checked and composed."""
