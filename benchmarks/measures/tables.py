"""Render what the measures decided, for docs/scores.md."""

from benchmarks.timing import Row
from softcam_hub.evaluation.report import markdown

from .known_maps import BAD

CHANCE = 0.5


def measures_table(rows: list[Row]) -> str:
    """Render one line per measure: the share of images on which the right map wins against each kind of wrong map."""
    found = {(row["measure"], row["against"]): row for row in rows}
    body = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        cells = [_cell(found[measure, kind]) for kind in (*BAD, "mean")]
        body.append([measure, *cells, fooled([found[measure, kind] for kind in BAD])])
    images, row = max(row["images"] for row in rows), rows[0]
    return (
        f"Percent of {images} generated test images with lesions on which the right map scores better than a wrong "
        "one, equal scores counting half; in brackets 95 % intervals over images. Bold where the interval lies above "
        "50 %. "
        f"*Fooled by* are the wrong maps that score better than the right one. Shipped model `cape_lesions`, torch "
        f"{row['torch']}.\n\n"
    ) + markdown(["measure", *BAD, "mean", "fooled by"], body)


def fooled(rows: list[Row]) -> str:
    """Name the wrong maps that score better than the right one on most images, as far as the intervals tell."""
    return ", ".join(row["against"] for row in rows if row["interval"][1] < CHANCE) or "-"


def _cell(row: Row) -> str:
    low, high = row["interval"]
    text = f"{100 * row['share']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
    return f"**{text}**" if low > CHANCE else text
