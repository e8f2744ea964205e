"""The rule by which a variant of post-fitting becomes the default, written before any row was measured."""

import statistics
from collections.abc import Iterable

from benchmarks.timing import Row

RULE = (
    "A variant becomes the default of post-fitting if its mean accuracy over three seeds is above that of the paper's "
    "own variant on steel, on lesions and on marks (vanilla classifiers that are trained to the end), and neither "
    "accuracy nor balanced accuracy is more than 0.5 points below it on any vanilla classifier. Of several such "
    "variants the one with the highest mean accuracy over all of them is chosen. Settings are compared on validation "
    "images, and the test images of the chosen variant and of the paper's are told beside it. What fails the rule and "
    "is better by 2 points or more on some kind of vanilla classifier stays as an option; the rest is deleted."
)

PAPER = "paper"
"""Name of the paper's own variant."""

DECIDING = ("steel", "lesions", "marks")
"""Vanilla classifiers on which the default must be better."""

MAY_LOSE = 0.005
HELPS = 0.02

SCORES = ("accuracy", "balanced_accuracy")


def gains(rows: list[Row], variant: str, kind: str, score: str, split: str = "validation") -> list[float]:
    """Return the difference of a variant to the paper's own, for every seed.

    Args:
        rows: Rows of all variants.
        variant: Name of a variant.
        kind: Name of a vanilla classifier.
        score: Name of a score.
        split: Split on which it was measured.
    """
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["kind"] == kind and row["split"] == split and row["variant"] in (variant, PAPER):
            values.setdefault(row["variant"], {})[row["seed"]] = row[score]
    paper, own = values.get(PAPER, {}), values.get(variant, {})
    return [own[seed] - paper[seed] for seed in sorted(own) if seed in paper]


def passes(rows: list[Row], variant: str, kinds: Iterable[str]) -> bool:
    """Tell whether a variant keeps the rule.

    Args:
        rows: Rows of all variants.
        variant: Name of a variant.
        kinds: Names of all vanilla classifiers that were measured.
    """
    better = [gains(rows, variant, kind, "accuracy") for kind in DECIDING]
    if not all(better) or not all(statistics.fmean(seeds) > 0 for seeds in better):
        return False
    return all(
        statistics.fmean(gains(rows, variant, kind, score)) >= -MAY_LOSE - 1e-9 for kind in kinds for score in SCORES
    )


def helps(rows: list[Row], variant: str, kinds: Iterable[str]) -> bool:
    """Tell whether a variant is worth an option: two points better on some kind of vanilla classifier."""
    found = (gains(rows, variant, kind, score) for kind in kinds for score in SCORES)
    return any(seeds and statistics.fmean(seeds) >= HELPS for seeds in found)
