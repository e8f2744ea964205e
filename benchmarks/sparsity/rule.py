"""The rule by which a way to sparse maps becomes an option of the package, written before any row was measured.

- A setting is a candidate with one value of its parameter. In the screening one seed decides nothing: `shortfall`
  ranks settings by how far they are from the rule, and the two best candidates are fine-tuned with three seeds.
- The screening reads training and validation images only, so that the test images are left for the rule.
"""

from benchmarks.timing import Row

RULE = (
    "A candidate passes if, on lesions and on steel, after fine-tuning with three seeds and on test images, its maps "
    "have at least 80 % exact zeros, or a Gini coefficient that is at least 0.15 above dense SoftCAM's; its accuracy "
    "is in the mean of the three seeds not more than 0.5 points below the black box (the paired interval is told "
    "beside it); and its top-k precision is above that of dense SoftCAM and of every post-hoc CAM in every seed."
)

CHOICE = (
    "The screening trains heads on frozen features with one seed and reads validation images. A setting's shortfall "
    "is the number of percentage points that it lacks to the rule, in accuracy, in sparsity and in top-k precision, "
    "added up over the data sets. The two candidates with the smallest shortfall go on, each with its best setting; "
    "of equal shortfalls the higher top-k precision decides. Dense SoftCAM, L1 (the negative control), the ordinary "
    "CAPE and the centred dense head are references, and do not go on."
)

ZEROS = 0.80
"""Share of cells that are exactly zero, from which on a map counts as sparse."""

GINI_GAIN = 0.15
"""Rise of the Gini coefficient above dense SoftCAM that counts as sparse too."""

ACCURACY_LOSS = 0.005
"""Largest drop of accuracy below the black box."""

REFERENCES = ("dense", "centred", "l1", "cape")
"""Candidates that are measured for comparison only."""


def shortfall(row: Row, dense: Row, post_hoc: list[Row]) -> float:
    """Return the percentage points by which a setting misses the rule on one data set; 0 if it keeps the rule.

    Args:
        row: Measures of the setting.
        dense: Measures of dense SoftCAM, whose predictions are those of the black box.
        post_hoc: Measures of every post-hoc CAM of the black box.
    """
    accuracy = dense["accuracy"] - ACCURACY_LOSS - row["accuracy"]
    sparsity = min(ZEROS - row["zeros"], GINI_GAIN - (row["gini"] - dense["gini"]))
    precision = max(other["precision"] for other in (dense, *post_hoc)) - row["precision"]
    return 100 * sum(max(0.0, missing) for missing in (accuracy, sparsity, precision))
