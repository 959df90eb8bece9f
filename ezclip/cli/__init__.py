"""The command `ezclip`, one module for each subcommand."""
