"""Model cards: what is recorded about a model, the card that is rendered from it, and the check of a card."""

from .checks import check_card
from .local_paths import published_records
from .metadata import published_results
from .records import METRICS, PICTURES, RECIPE, ModelRecord, Row, load_model_record, read_model_config, read_rows
from .rendering import render_family_card, render_trained_card, write_card
from .tables import PLACEHOLDER_REPO, WITHOUT_INFLUENCE

__all__ = [
    "METRICS",
    "PICTURES",
    "PLACEHOLDER_REPO",
    "RECIPE",
    "WITHOUT_INFLUENCE",
    "ModelRecord",
    "Row",
    "check_card",
    "load_model_record",
    "published_records",
    "published_results",
    "read_model_config",
    "read_rows",
    "render_family_card",
    "render_trained_card",
    "write_card",
]
