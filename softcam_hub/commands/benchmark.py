"""`softcam-hub benchmark`: how good the explanations of a model are on a data set."""

import argparse
import dataclasses
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .. import CAPE_LESIONS

NOT_OF_ACCURACY = ("model", "explainers", "measures", "shard_size", "patch", "seed", "per_image", "overwrite")
"""Options that `--accuracy` has no use for."""

HELP = "measure explanations on a data set; write the papers' tables and curves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..data.config import DataConfig
    from ..evaluation.config import BenchmarkConfig

    models = parser.add_argument_group("models")
    models.add_argument(
        "--model", default=CAPE_LESIONS, help="model folder, timm name or Hub id; [a small lesions model]"
    )
    models.add_argument("--twin", help="the black box that post-hoc maps explain, such as RUN/vanilla")
    models.add_argument(
        "--accuracy",
        nargs="*",
        metavar="RUN",
        help="write the accuracies of these runs instead (table2.md), and with --twin those of vanilla, naive and "
        "off-the-shelf CAPE",
    )
    for group in (BenchmarkConfig, DataConfig):
        add_fields(parser.add_argument_group(group._argument_group_name), group)


def add_fields(parser: Any, group: type) -> None:
    """An option for each field of a dataclass."""
    types = get_type_hints(group)
    for field in dataclasses.fields(group):
        default, text = field.default, field.metadata["help"]
        if types[field.name] is bool:
            parser.add_argument(f"--{field.name}", action="store_true", help=text)
            continue
        kind = next((one for one in get_args(types[field.name]) if one is not type(None)), types[field.name])
        shown = "" if default in (None, "") else f" [{default}]"
        parser.add_argument(
            f"--{field.name}", type=kind, default=default, help=text + shown, metavar=kind.__name__.upper()
        )


def run(arguments: argparse.Namespace) -> None:
    from ..evaluation import benchmark

    logging.basicConfig(format="%(message)s")
    settings = dict(vars(arguments))
    runs = settings.pop("accuracy")
    settings.pop("run")
    if runs is not None:
        write_accuracies(runs, settings)
        return
    benchmark(**settings)
    tell(Path(settings["output"]), "table1.md")


def write_accuracies(runs: list[str], settings: dict[str, Any]) -> None:
    """Table 2 of finished runs and of the twin."""
    from accelerate import Accelerator

    from ..data.splits import load_splits
    from ..evaluation.accuracy import rows_of_runs, rows_of_twin, table2
    from ..evaluation.config import make_settings
    from ..evaluation.folder import TABLE2, TABLE2_ROWS, benchmark_folder
    from ..evaluation.run import needed, samples_of_split
    from ..files import write_text
    from ..loading import load_classifier

    refuse_unused(settings)
    source = settings.pop("twin")
    settings.pop("model")
    config, data = make_settings(**settings)
    if not runs and source is None:
        raise ValueError("--accuracy needs runs, or a twin to measure: name them")
    state, folder = Accelerator(), benchmark_folder(config.output)
    with folder.locked("continue") if state.is_main_process else nullcontext():
        rows = rows_of_runs(runs)
        if source is not None:
            twin, splits = load_classifier(source), load_splits(needed(data, config.split))
            twin.check_classes(splits.classes, "the twin")
            images = samples_of_split(splits, data, config.split)
            rows += rows_of_twin(twin, images, data.data, config.batch_size, state.device, config.limit)
        if state.is_main_process:
            folder.claim("continue")
            write_text(folder.path / TABLE2_ROWS, "".join(json.dumps(row) + "\n" for row in rows))
            write_text(folder.path / TABLE2, table2(rows))
    tell(folder.path, TABLE2)


def refuse_unused(settings: dict[str, Any]) -> None:
    """Refuse options that `--accuracy` has no use for."""
    from ..evaluation.config import BenchmarkConfig

    usual = {field.name: field.default for field in dataclasses.fields(BenchmarkConfig)} | {"model": CAPE_LESIONS}
    unused = [f"--{name}" for name in NOT_OF_ACCURACY if settings[name] != usual[name]]
    if unused:
        raise ValueError(f"--accuracy measures predictions, not explanations: leave out {', '.join(unused)}")


def tell(folder: Path, name: str) -> None:
    """Show a table, once."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print((folder / name).read_text() + f"\nwritten to {folder}")
