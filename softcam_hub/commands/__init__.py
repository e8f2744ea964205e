"""The commands of `softcam-hub`, one module each: `HELP`, `add_arguments(parser)`, `run(arguments)`."""

import importlib


def register_models() -> None:
    """Make our models known to timm and transformers, as importing the package does in any other program.

    This takes seconds, so that a command checks its options before.
    """
    importlib.import_module("softcam_hub.public")
