"""`softcam-hub benchmark`: how good the explanations of a model are on a data set."""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .. import CAPE_LESIONS

HELP = "Measure explanations on a data set, and write the CAPE paper's Table 1 and curves."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    from ..data.config import DataConfig
    from ..evaluation.config import BenchmarkConfig

    models = parser.add_argument_group("models")
    models.add_argument(
        "--model", default=CAPE_LESIONS, help="model folder, timm name or Hub id [a small lesions model]"
    )
    models.add_argument("--vanilla", help="vanilla classifier that post-hoc maps explain, such as RUN/vanilla")
    for group in (BenchmarkConfig, DataConfig):
        add_fields(parser.add_argument_group(group._argument_group_name), group)


def add_fields(parser: Any, group: type, names: Sequence[str] | None = None) -> None:
    """Add an option for each field of a configuration, or for the fields that are named.

    Args:
        parser: Parser or argument group.
        group: Dataclass whose fields have a help text.
        names: Names of the fields; None for all.
    """
    types = get_type_hints(group)
    for field in dataclasses.fields(group):
        if names is not None and field.name not in names:
            continue
        default, text = field.default, field.metadata["help"]
        if types[field.name] is bool:
            parser.add_argument(f"--{field.name}", action="store_true", help=text)
            continue
        value_type = next((one for one in get_args(types[field.name]) if one is not type(None)), types[field.name])
        text += "" if default in (None, "") else f" [{default}]"
        metavar = value_type.__name__.upper()
        parser.add_argument(f"--{field.name}", type=value_type, default=default, help=text, metavar=metavar)


def run(arguments: argparse.Namespace) -> None:
    """Measure, and show the table."""
    from ..evaluation import benchmark
    from ..evaluation.folder import TABLE1

    logging.basicConfig(format="%(message)s")
    benchmark(**{name: value for name, value in vars(arguments).items() if name != "run"})
    show_table(arguments.output, TABLE1)


def show_table(output: str, name: str) -> None:
    """Print a table of the output folder, in the main process only."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print((Path(output) / name).read_text() + f"\nwritten to {output}")
