"""`softcam-hub card`: write or check the card of a model folder."""

import argparse
from pathlib import Path

HELP = "Write the model card of a folder from its scores, recipe and pictures."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "folder",
        type=Path,
        help="Model folder. The card shows its metrics.json, recipe.yaml and pictures, and the rows.jsonl of a "
        "`softcam-hub benchmark` if you copy it there.",
    )
    parser.add_argument(
        "--license",
        help="License of the weights in the spelling of the Hub, such as mit or apache-2.0. By default, the "
        "license that the existing card names.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing card.")
    parser.add_argument("--check", action="store_true", help="Check the existing card instead of writing one.")


def run(arguments: argparse.Namespace) -> None:
    """Write or check the card."""
    from ..hub.cards import check_card, load_model_record, write_card

    if not arguments.check:
        print(f"wrote {write_card(arguments.folder, arguments.license, arguments.overwrite)}")
        return
    file = arguments.folder / "README.md"
    if not file.is_file():
        raise FileNotFoundError(f"{arguments.folder} has no README.md: leave out --check to write one")
    rows = load_model_record(arguments.folder).rows
    check_card(
        file.read_text(encoding="utf-8", errors="replace"), rows, {path.name for path in arguments.folder.iterdir()}
    )
    print(f"{file} has no gaps, and every number in it is the number of a row")
