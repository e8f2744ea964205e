"""Render the model cards in `model_cards/`, and the card of the model that comes with the package.

python tools/render_cards.py              # from the committed rows
python tools/render_cards.py --check      # exit 1 where a card differs from its rows, or has a gap
python tools/render_cards.py --measure    # examine the architectures of the families again first (half a minute)
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
"""The model that comes with the package, and the recipe whose rows are its own."""


NOTE = (
    "It comes with the package, so that examples and tests run offline: `softcam_hub.CAPE_LESIONS` is its folder,\n"
    "which every door takes as it takes a repo."
)


class Card(NamedTuple):
    file: Path
    text: str
    rows: list[Row]
    present: set[str]


def rendered() -> Iterator[Card]:
    heads = read_rows(RESULTS / "heads.jsonl")
    for row in read_rows(FAMILIES):
        timings = [
            timing
            for timing in heads
            if timing["model"] == row["backbone"] and timing["comparison"] == f"{row['family']} explained"
        ]
        yield Card(CARDS / f"{row['model']}.md", render_family_card(row, timings), [row, *timings], set())
    yield from shipped()


def shipped() -> Iterator[Card]:
    """The same card twice: beside the model, and among the cards, where the picture is README's."""
    folder = Path(CAPE_LESIONS)
    model = load_model_record(folder, license="mit")
    results = [*read_rows(RESULTS / "lesions.jsonl"), *read_rows(RESULTS / "explanations.jsonl")]
    rows = [model.config, *(row for row in results if row["recipe"] == RECIPE)]
    yield Card(folder / "README.md", render_trained_card(model, SHIPPED, NOTE), rows, set(model.pictures))
    pictures = ("../docs/examples.png",)
    yield Card(
        CARDS / f"{SHIPPED}.md",
        render_trained_card(replace(model, pictures=pictures), SHIPPED, NOTE),
        rows,
        set(pictures),
    )


def problems(cards: list[Card]) -> Iterator[str]:
    for card in cards:
        name = card.file.relative_to(ROOT)
        if not card.file.exists() or card.file.read_text(encoding="utf-8") != card.text:
            yield f"{name} differs from its rows: run `python tools/render_cards.py`"
        try:
            check_card(card.text, card.rows, card.present)
        except ValueError as error:
            yield f"{name}: {error}"
    for file in sorted({*CARDS.glob("*")} - {card.file for card in cards}):
        yield f"{file.relative_to(ROOT)} is rendered from nothing: delete it"


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed cards instead of writing them")
    parser.add_argument("--measure", action="store_true", help="examine the families' architectures again first")
    arguments = parser.parse_args()
    if arguments.measure:
        from measure_families import write_rows

        write_rows(FAMILIES)
    cards = list(rendered())
    if not arguments.check:
        CARDS.mkdir(exist_ok=True)
        for card in cards:
            write_text(card.file, card.text)
    found = list(problems(cards))
    print("\n".join(found) or f"{len(cards)} cards are up to date")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
