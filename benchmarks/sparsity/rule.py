"""The rule by which a way to sparse maps becomes an option of the package, written before any row was measured.

- A setting is a candidate with one value of its parameter. In the screening one seed decides nothing: `shortfall`
  ranks settings by how far they are from the rule, and the two best candidates are fine-tuned with three seeds.
- The screening reads training and validation images only, so that the test images are left for the rule.
"""

import math
import statistics
from dataclasses import dataclass

from benchmarks.timing import Row

RULE = (
    "A candidate passes if, on lesions and on steel, after fine-tuning with three seeds and on test images, its maps "
    "have at least 80 % exact zeros, or a Gini coefficient that is at least 0.15 above dense SoftCAM's; its accuracy "
    "is in the mean of the three seeds not more than 0.5 points below the vanilla classifier (the paired interval is "
    "told beside it); and its top-k precision is above that of dense SoftCAM and of every post-hoc CAM in every seed."
)

CHOICE = (
    "The screening trains heads on frozen features with one seed and reads validation images. A setting's shortfall "
    "is the number of percentage points that it lacks to the rule, in accuracy, in sparsity and in top-k precision, "
    "added up over lesions and steel at a stride of 16. The two candidates with the smallest shortfall go on, each "
    "with its best setting; of equal shortfalls the higher top-k precision decides. Dense SoftCAM, L1 (the negative "
    "control), the ordinary CAPE and the centred dense head are references, and do not go on."
)

ZEROS = 0.80
"""Share of cells that are exactly zero, from which on a map counts as sparse."""

GINI_GAIN = 0.15
"""Rise of the Gini coefficient above dense SoftCAM that counts as sparse too."""

ACCURACY_LOSS = 0.005
"""Largest drop of accuracy below the vanilla classifier."""

SEEDS = 3
"""Number of seeds that the rule asks for."""

REFERENCES = ("dense", "centred", "l1", "cape")
"""Candidates that are measured for comparison only."""


def shortfall(row: Row, dense: Row, post_hoc: list[Row]) -> float:
    """Return the percentage points by which a setting misses the rule on one data set; 0 if it keeps the rule.

    Args:
        row: Measures of the setting.
        dense: Measures of dense SoftCAM, whose predictions are those of the vanilla classifier.
        post_hoc: Measures of every post-hoc CAM of the vanilla classifier.
    """
    accuracy = dense["accuracy"] - ACCURACY_LOSS - row["accuracy"]
    sparsity = min(ZEROS - row["zeros"], GINI_GAIN - (row["gini"] - dense["gini"]))
    precision = max(other["precision"] for other in (dense, *post_hoc)) - row["precision"]
    return 100 * sum(max(0.0, missing) for missing in (accuracy, sparsity, precision))


def references(rows: list[Row], study: str, stage: str, seed: int) -> tuple[Row, list[Row]]:
    """Return the row of dense SoftCAM, and those of the post-hoc CAMs of the vanilla classifier."""
    found = [row for row in rows if (row["study"], row["stage"], row["seed"]) == (study, stage, seed)]
    dense = next(row for row in found if row["candidate"] == "dense")
    return dense, [row for row in found if row["candidate"].startswith("post-hoc ")]


def is_screened(rows: list[Row], studies: tuple[str, ...]) -> bool:
    """Tell whether all studies have rows of the screening."""
    return set(studies) <= {row["study"] for row in rows if row["stage"] == "screening"}


def ranking(
    rows: list[Row], studies: tuple[str, ...], with_references: bool = False
) -> list[tuple[float, float, str, float]]:
    """Return (shortfall, -precision, candidate, value) of every setting, the best first.

    Args:
        rows: Rows of the screening.
        studies: Studies over which shortfalls are added up.
        with_references: Rank the references too.
    """
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for study in studies:
        dense, cams = references(rows, study, "screening", 0)
        for row in rows:
            if row["study"] == study and row["stage"] == "screening" and "accuracy" in row and row["seed"] == 0:
                setting = row["candidate"], row["value"]
                found.setdefault(setting, []).append((shortfall(row, dense, cams), row["precision"]))
    return sorted(
        (sum(missing for missing, _ in values), -statistics.fmean(precision for _, precision in values), *setting)
        for setting, values in found.items()
        if with_references or setting[0] not in REFERENCES
    )


def choose(rows: list[Row], studies: tuple[str, ...], count: int = 2) -> list[tuple[str, float]]:
    """Return the best candidates of the screening, each with its best value."""
    best: dict[str, float] = {}
    for _, _, candidate, value in ranking(rows, studies):
        best.setdefault(candidate, value)
    return list(best.items())[:count]


@dataclass(frozen=True)
class Verdict:
    """What the rule says of a candidate on one study after fine-tuning.

    Args:
        accuracy: Mean difference of accuracy to the vanilla classifier.
        interval: Half of the 95 % interval of that difference, paired by image.
        is_accurate: Whether the accuracy keeps the rule.
        is_sparse: Whether zeros or Gini keep the rule.
        margins: Top-k precision above the best of dense SoftCAM and the post-hoc CAMs, seed by seed.
    """

    accuracy: float
    interval: float
    is_accurate: bool
    is_sparse: bool
    margins: list[float]

    @property
    def passes(self) -> bool:
        """Whether the candidate keeps the rule on this study, which asks for three seeds."""
        return len(self.margins) >= SEEDS and self.is_accurate and self.is_sparse and not self.is_out

    @property
    def is_out(self) -> bool:
        """Whether no further seed can help: the rule asks for a higher top-k precision in every seed."""
        return min(self.margins) <= 0


def judge(rows: list[Row], study: str, candidate: str) -> Verdict | None:
    """Apply the rule to the rows of the fine-tuning; None without rows."""
    of_study = [row for row in rows if row["stage"] == "fine-tuning" and row["study"] == study]
    chosen = sorted((row for row in of_study if row["candidate"] == candidate), key=lambda row: row["seed"])
    if not chosen:
        return None
    pairs = [(row, *references(rows, study, "fine-tuning", row["seed"])) for row in chosen]
    # the seeds of lesions have images of their own: the mean over seeds belongs to a place in the order of images
    changes = [
        statistics.fmean(values)
        for values in zip(*(_changes(row["hits"], dense["hits"]) for row, dense, _ in pairs), strict=True)
    ]
    accuracy = statistics.fmean(changes)
    zeros = statistics.fmean(row["zeros"] for row in chosen)
    gain = statistics.fmean(row["gini"] - dense["gini"] for row, dense, _ in pairs)
    return Verdict(
        accuracy,
        1.96 * statistics.stdev(changes) / math.sqrt(len(changes)),
        accuracy >= -ACCURACY_LOSS,
        zeros >= ZEROS or gain >= GINI_GAIN,
        [min(_margin(row, other) for other in (dense, *cams)) for row, dense, cams in pairs],
    )


def _changes(hits: str, others: str) -> list[int]:
    return [int(hit) - int(other) for hit, other in zip(hits, others, strict=True)]


def _margin(row: Row, other: Row) -> float:
    """Return how much higher the precision is, over the images that both rows have."""
    count = len(other["precisions"])
    return statistics.fmean(row["precisions"][:count]) - statistics.fmean(other["precisions"])
