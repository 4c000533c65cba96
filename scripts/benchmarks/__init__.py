"""What scripts/benchmark runs: measurements of kdx's speed, each a subcommand."""
