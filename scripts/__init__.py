"""Benchmarks and planning; launchers of the subcommands of `ezclip`."""
