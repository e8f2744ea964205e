"""Render the model cards in `model_cards/`, and the card of the model that comes with the package.

python -m tools.render_cards              # from the committed rows
python -m tools.render_cards --check      # exit 1 if a card differs from its rows, or has a gap
python -m tools.render_cards --measure    # measure the architectures of the families again first (half a minute)
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from softcam_hub import CAPE_LESIONS
from softcam_hub.arguments import ArgumentParser
from softcam_hub.files import write_text
from softcam_hub.hub.cards import Row, check_card, load_model_record, read_rows, render_family_card, render_trained_card

ROOT = Path(__file__).parents[1]
RESULTS, CARDS = ROOT / "benchmarks" / "results", ROOT / "model_cards"
FAMILIES = RESULTS / "families.jsonl"

SHIPPED, RECIPE = "cape_lesions", "lesions-cape"
"""Name of the model that comes with the package, and the recipe that trained it."""

NOTE = (
    "The model comes with the package, so that examples and tests run offline. `softcam_hub.CAPE_LESIONS` is its\n"
    "folder, and can be used wherever a repository on the Hub can."
)
"""Second paragraph of the card of the shipped model."""


class Card(NamedTuple):
    """A rendered card.

    Args:
        file: File that holds the card.
        text: Content that the file should have.
        rows: Rows that hold the numbers of the card.
        present: Names of the pictures that the card may show.
    """

    file: Path
    text: str
    rows: list[Row]
    present: set[str]


def render_cards() -> Iterator[Card]:
    """Render the cards of all families, then the two of the shipped model."""
    timed = read_rows(RESULTS / "heads.jsonl")
    for row in read_rows(FAMILIES):
        compared = f"{row['family']} explained"
        timings = [one for one in timed if one["model"] == row["backbone"] and one["comparison"] == compared]
        yield Card(CARDS / f"{row['model']}.md", render_family_card(row, timings), [row, *timings], set())
    yield from render_shipped_cards()


def render_shipped_cards() -> Iterator[Card]:
    """Render the card of the shipped model twice: beside the model, and for `model_cards/`.

    The second card shows the picture of the README.
    """
    folder = Path(CAPE_LESIONS)
    record = load_model_record(folder, license="mit")
    results = [*read_rows(RESULTS / "lesions.jsonl"), *read_rows(RESULTS / "explanations.jsonl")]
    rows = [
        record.config,
        record.distance_row,
        *(row for row in results if row["recipe"] == RECIPE and not row.get("seed")),
    ]
    cards = {folder / "README.md": record, CARDS / f"{SHIPPED}.md": replace(record, pictures=("../docs/examples.png",))}
    for file, shown in cards.items():
        yield Card(file, render_trained_card(shown, SHIPPED, NOTE), rows, set(shown.pictures))


def find_problems(cards: list[Card]) -> Iterator[str]:
    """Describe everything that is wrong with the committed cards."""
    for card in cards:
        name = card.file.relative_to(ROOT)
        if not card.file.exists() or card.file.read_text(encoding="utf-8") != card.text:
            yield f"{name} differs from its rows: run `python -m tools.render_cards`"
        try:
            check_card(card.text, card.rows, card.present)
        except ValueError as error:
            yield f"{name}: {error}"
    for file in sorted({*CARDS.glob("*")} - {card.file for card in cards}):
        yield f"{file.relative_to(ROOT)} is not rendered from any row: delete it"


def main() -> int:
    """Render or check the cards, and return the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the committed cards instead of writing them")
    parser.add_argument("--measure", action="store_true", help="measure the architectures of the families again first")
    arguments = parser.parse_args()
    if arguments.measure:
        from tools.measure_families import write_rows

        write_rows(FAMILIES)
    cards = list(render_cards())
    if not arguments.check:
        CARDS.mkdir(exist_ok=True)
        for card in cards:
            write_text(card.file, card.text)
    problems = list(find_problems(cards))
    print("\n".join(problems) or f"{len(cards)} cards are up to date")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
