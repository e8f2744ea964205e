"""`softcam-hub benchmark`: how good the explanations of a model are on a data set."""

import argparse
import logging
from pathlib import Path

from ..arguments import ArgumentParser, add_fields
from . import add_model_option, register_models

HELP = "Measure explanations on a data set, and write the CAPE paper's Table 1 and curves."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    from ..data.config import DataConfig
    from ..evaluation.config import BenchmarkConfig

    parser.usage = f"{parser.prog} --output DIR [--model MODEL] [--OPTION VALUE ...]"
    models = parser.add_argument_group("models")
    add_model_option(models)
    models.add_argument(
        "--vanilla",
        metavar="MODEL",
        help="Vanilla classifier for the post-hoc methods to explain, such as the folder vanilla/ of a training "
        "run. Model folder, timm name or Hub id.",
    )
    for group in (BenchmarkConfig, DataConfig):
        add_fields(parser.add_argument_group(group._argument_group_name), group)


def run(arguments: argparse.Namespace) -> None:
    """Measure, and show the table."""
    from ..evaluation.config import make_settings
    from ..evaluation.folder import TABLE1

    settings = dict(vars(arguments))
    models = {name: settings.pop(name) for name in ("model", "vanilla")}
    make_settings(**settings)
    register_models()
    from ..evaluation.run import benchmark

    logging.basicConfig(format="%(message)s")
    benchmark(**models, **settings)
    show_table(arguments.output, TABLE1)


def show_table(output: str, name: str) -> None:
    """Print a table of the output folder, in the main process only."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print((Path(output) / name).read_text(encoding="utf-8") + f"\nwritten to {output}")
