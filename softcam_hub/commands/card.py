"""`softcam-hub card`: write the card of a model folder."""

import argparse
from pathlib import Path

from ..hub.cards import check_card, load_model_record, write_card

HELP = "write the model card of a folder from its scores, recipe and pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        help="a model folder; its metrics.json, recipe.yaml and pictures are told, and the rows.jsonl of a "
        "`softcam-hub benchmark` where you copy it there",
    )
    parser.add_argument(
        "--license", help="of the weights, as the Hub spells it: mit, apache-2.0, ... [that of the card that is there]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a card that is there")
    parser.add_argument("--check", action="store_true", help="look at the card that is there instead of writing one")


def run(arguments: argparse.Namespace) -> None:
    if not arguments.check:
        print(f"wrote {write_card(arguments.folder, arguments.license, arguments.overwrite)}")
        return
    file = arguments.folder / "README.md"
    if not file.is_file():
        raise FileNotFoundError(f"{arguments.folder} has no README.md: leave out --check to write one")
    rows = load_model_record(arguments.folder).rows
    check_card(file.read_text(encoding="utf-8"), rows, {path.name for path in arguments.folder.iterdir()})
    print(f"{file} has no gaps, and every number of it stands in a row")
