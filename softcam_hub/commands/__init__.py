"""The commands of `softcam-hub`, one module each: `HELP`, `add_arguments(parser)`, `run(arguments)`."""
