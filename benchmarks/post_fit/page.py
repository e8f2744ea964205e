"""Derive docs/post_fitting.md from the rows: python -m benchmarks.post_fit.page [--check]"""

import statistics
import sys
from pathlib import Path

from benchmarks.timing import Row, read_rows
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import markdown

from .black_boxes import BOXES
from .rule import DECIDING, PAPER, RULE, SCORES, gains, helps, passes
from .study import ROWS
from .variants import VARIANTS

DOCUMENT = Path(__file__).parents[2] / "docs" / "post_fitting.md"

UNTRAINED = ("naive", "off the shelf")
"""CAPE with the weights of the black box, which learns nothing."""

ABOUT = """# When post-fitted CAPE keeps the accuracy of its black box

Post-fitting freezes a vanilla classifier and fits CAPE's head to its predictions. This page tells on which classifiers
the accuracy is kept, on which it is lost, and what mends it, under a rule that was written before the first row.
`python -m benchmarks.post_fit.study --photographs FOLDER` measures, and `python -m benchmarks.post_fit.page` derives
the page from `benchmarks/results/post_fit.jsonl`.
"""

BLACK_BOXES = """## Black boxes and variants

*lesions*, *marks* and *steel* are the vanilla classifiers of the [reproduction](reproduction.md). *Under-trained* has
seen one epoch of steel instead of six. A *linear probe* is a classifier of the pooled, frozen features of an ImageNet
backbone. *Unbalanced* steel has fewer training images of every further class, down to a sixteenth.

*paper* is the paper's variant: W of the black box at the start, only the divergence from it, T = 2. *Alpha* is the
weight of a cross-entropy with the labels. *Balanced* gives every predicted class the same weight in the divergence.
*Centred* starts from W without what its rows have in common, which is naive CAPE exactly. *Shared first* learns what
all rows have in common for half of the epochs, which moves the saliency alone. *Clipped* scales large gradients down,
and *longer* makes at least 1,000 updates: both together are what `softcam_hub.post_fit` does. *Off the shelf* and
*naive* learn nothing.
"""


def document(rows: list[Row]) -> str:
    """Return the page."""
    boxes = [name for name in BOXES if any(row["box"] == name for row in rows)]
    return "\n".join(
        [ABOUT, f"## The rule\n\n{RULE}\n", outcome(rows, boxes), BLACK_BOXES, *(table(rows, box) for box in boxes)]
    )


def outcome(rows: list[Row], boxes: list[str]) -> str:
    """Say which variants pass, which one is chosen, which stay as options, and what was lost before and after."""
    others = [name for name in VARIANTS if name != PAPER]
    passing = [name for name in others if passes(rows, name, boxes)]
    options = [name for name in others if name not in passing and helps(rows, name, boxes)]
    chosen = max(
        passing, key=lambda name: statistics.fmean(_mean(rows, box, name, "accuracy") for box in boxes), default=""
    )
    sentences = [f"Of {len(others)} variants, {_names(passing)} {'passes' if len(passing) == 1 else 'pass'} the rule."]
    if chosen:
        sentences.append(f"*{chosen}* has the highest mean accuracy of them on validation images, and is the default.")
    else:
        sentences.append("The paper's own variant stays the default.")
    verb = "stays as an option" if len(options) == 1 else "stay as options"
    sentences.append(f"Without passing, {_names(options)} helped by two points on some black box and {verb}.")
    shown = [PAPER, *([chosen] if chosen else [])]
    header = ["black box", "deciding", "accuracy", *(f"{name}, difference" for name in (*UNTRAINED, *shown))]
    body = [_loss_line(rows, box, [*UNTRAINED, *shown]) for box in boxes]
    told = "Accuracy of the black box on test images, and the difference of CAPE to it in points, means over seeds:"
    return f"## Outcome\n\n{' '.join(sentences)}\n\n{told}\n\n{markdown(header, body)}\n"


def _loss_line(rows: list[Row], box: str, variants: list[str]) -> list[str]:
    accuracy = _mean(rows, box, PAPER, "black_box_accuracy", "test")
    losses = [f"{100 * (_mean(rows, box, name, 'accuracy', 'test') - accuracy):+.1f}" for name in variants]
    return [box, "yes" if box in DECIDING else "no", f"{100 * accuracy:.1f}", *losses]


def table(rows: list[Row], box: str) -> str:
    """Render a line for every variant on one black box: means over seeds, and the gains of every seed."""
    shown = [row for row in rows if row["box"] == box and row["split"] == "validation"]
    seeds = sorted({row["seed"] for row in shown})
    first = shown[0]
    theirs = ", ".join(
        f"{name.replace('_', ' ')} {_percent(_mean(rows, box, PAPER, f'black_box_{name}'))}" for name in SCORES
    )
    body = []
    for name in dict.fromkeys(row["variant"] for row in shown):
        cells = [_percent(_mean(rows, box, name, column)) for column in (*SCORES, "disagreement")]
        for score in SCORES:
            own = gains(rows, name, box, score) if name != PAPER else []
            cells.append(", ".join(f"{100 * gain:+.1f}" for gain in own) or "-")
        body.append([name, *cells])
    header = ["variant", "accuracy", "balanced accuracy", "disagreement", "gain", "gain, balanced"]
    about = (
        f"{first['trained_on']} training and {first['images']} validation images, seeds {', '.join(map(str, seeds))}. "
        f"The black box has in %: {theirs}. *Gain* is the difference to the paper's variant in points, seed by seed."
    )
    return f"## {box}\n\n{about}\n\n{markdown(header, body)}\n"


def _mean(rows: list[Row], box: str, variant: str, column: str, split: str = "validation") -> float:
    """Return the mean over seeds."""
    found = [row for row in rows if (row["box"], row["variant"], row["split"]) == (box, variant, split)]
    return statistics.fmean(row[column] for row in found)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _names(names: list[str]) -> str:
    return ", ".join(f"*{name}*" for name in names) or "none"


def main() -> None:
    """Write the page, or compare it with the rows."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where the page differs from the rows")
    new = document(read_rows(ROWS))
    if parser.parse_args().check:
        if not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != new:
            sys.exit("docs/post_fitting.md differs from the rows: run `python -m benchmarks.post_fit.page`")
        return
    DOCUMENT.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
