"""`softcam-hub accuracy`: the accuracy that explaining itself costs a model, the CAPE paper's Table 2."""

import argparse

from ..arguments import ArgumentParser, add_fields
from . import register_models
from .benchmark import show_table

HELP = "Write a table of the accuracies of training runs, and of CAPE with the weights of a vanilla classifier."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    from ..data.config import DataConfig
    from ..evaluation.config import OF_ACCURACIES, BenchmarkConfig

    parser.usage = f"{parser.prog} [RUN ...] --output DIR [--vanilla MODEL] [--OPTION VALUE ...]"
    parser.add_argument("runs", nargs="*", metavar="RUN", help="Folders of finished training runs.")
    parser.add_argument(
        "--vanilla",
        metavar="MODEL",
        help="Vanilla classifier to measure as it is, and in CAPE's head (naive and off the shelf): model folder, "
        "timm name or Hub id.",
    )
    add_fields(parser, BenchmarkConfig, OF_ACCURACIES)
    add_fields(parser.add_argument_group(DataConfig._argument_group_name), DataConfig)


def run(arguments: argparse.Namespace) -> None:
    """Measure, and show the table."""
    from ..evaluation.config import make_settings
    from ..evaluation.folder import TABLE2

    settings = dict(vars(arguments))
    runs, vanilla = settings.pop("runs"), settings.pop("vanilla")
    make_settings(**settings)
    register_models()
    from ..evaluation.accuracy import accuracy

    accuracy(runs, vanilla=vanilla, **settings)
    show_table(arguments.output, TABLE2)
