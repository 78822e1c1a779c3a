"""One file a command: `add_arguments(parser)` and `run(args) -> exit code`. Heavy imports happen inside `run`."""
