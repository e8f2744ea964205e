"""`softcam-hub train`: train a self-explaining classifier, or a vanilla one to compare it with."""

import argparse

from ..arguments import ArgumentParser
from . import register_models

HELP = "Train a self-explaining classifier, or the vanilla classifier that it is compared with."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    from ..training.parsing import add_settings

    parser.usage = f"{parser.prog} [--recipe NAME] [--SETTING VALUE ...]"
    add_settings(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train, in one process or as one of the processes of `accelerate launch`."""
    from ..training.parsing import combine

    config = combine(arguments)
    register_models()
    from ..training.loop import NotFinite
    from ..training.run import run as train

    try:
        train(config)
    except NotFinite as error:
        raise ValueError(str(error)) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("--resume continues from the last checkpoint") from None
