"""Tell whether a classifier has learnt from images with deleted cells, without which IDSDS is out of its domain.

A run of `softcam-hub train` leaves its settings beside the model (`recipe.yaml`) and above it (`settings.yaml`, which
also tells of the folder `vanilla/`). Post-fitting leaves the backbone as it was, so that the run in which the backbone
has learnt counts as well.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ..training.folder import settings_behind

logger = logging.getLogger(__name__)


def warn_of_unseen_deletions(names: Mapping[str, str | None]) -> None:
    """Warn once if measured classifiers have not learnt from images with deleted cells, or if nothing tells it.

    Args:
        names: Role of a classifier -> its folder or name; None for a classifier made of the other one.
    """
    answers = {name: has_learnt_deletions(name) for name in names.values() if name is not None}
    untrained = [name for name, answer in answers.items() if answer is False]
    unknown = [name for name, answer in answers.items() if answer is None]
    reasons = [f"{' and '.join(untrained)} did not learn from such images"] if untrained else []
    reasons += [f"nothing tells whether {' and '.join(unknown)} did"] if unknown else []
    if reasons:
        logger.warning(
            "idsds is in the domain only of models that have learnt from images with deleted cells, and %s: train with "
            "--delete-cells to measure it as published",
            ", and ".join(reasons),
        )


def has_learnt_deletions(source: str) -> bool | None:
    """Tell whether the run that trained a model had `delete_cells`; None where no record of a run is found.

    Args:
        source: Model folder, with or without timm's prefix `local-dir:`, or any other name, of which nothing is known.
    """
    visited: set[str] = set()
    while True:
        # a run may have started from the model in the folder that it then replaced
        settings = None if source in visited else _read_settings(source)
        if settings is None:
            return None
        if settings.get("delete_cells"):
            return True
        if settings.get("mode") != "post-fit" or not settings.get("init"):
            return False
        visited.add(source)
        source = str(settings["init"])


def _read_settings(source: str) -> dict[str, Any] | None:
    """Return the settings of the run that trained a model; None without a record that can be read."""
    try:
        found = settings_behind(source)
    except (ValueError, OSError):  # nothing depends on it but a warning
        return None
    return None if found is None else found[1]
