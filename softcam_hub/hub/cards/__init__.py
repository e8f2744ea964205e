"""Model cards: what is known of a model, the card made of it, and what makes a card invalid."""

from .private_paths import public_records
from .records import METRICS, PICTURES, RECIPE, Row, Trained, read_config, read_rows, read_trained
from .rendering import PLACE, family_card, trained_card, write_card
from .rules import check

__all__ = [
    "METRICS",
    "PICTURES",
    "PLACE",
    "RECIPE",
    "Row",
    "Trained",
    "check",
    "family_card",
    "public_records",
    "read_config",
    "read_rows",
    "read_trained",
    "trained_card",
    "write_card",
]
