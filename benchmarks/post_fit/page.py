"""Derive docs/post_fitting.md from the rows: python -m benchmarks.post_fit.page [--check]"""

import statistics
import sys
from pathlib import Path

from benchmarks.timing import Row, read_rows
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.report import markdown

from .classifiers import KINDS
from .rule import DECIDING, PAPER, RULE, SCORES, gains, helps, passes
from .study import ROWS
from .variants import VARIANTS

DOCUMENT = Path(__file__).parents[2] / "docs" / "post_fitting.md"

UNTRAINED = ("naive", "off the shelf")
"""CAPE with the weights of the vanilla classifier, which learns nothing."""

LIBRARY = "clipped, longer"
"""The variant that `softcam_hub.post_fit` is."""

FEW = 5
"""Number of mistakes of the paper's variant from which on others can be better."""

ABOUT = """# When post-fitted CAPE keeps the accuracy of its vanilla classifier

Post-fitting freezes a vanilla classifier and fits CAPE's head to its predictions. This page tells on which classifiers
the accuracy is kept, on which it is lost, and what mends it, under a rule that was written before the first row.
`python -m benchmarks.post_fit.study --photographs FOLDER` measures, and `python -m benchmarks.post_fit.page` derives
the page from `benchmarks/results/post_fit.jsonl`.
"""

ABOUT_CLASSIFIERS = """## Vanilla classifiers and variants

*lesions*, *marks* and *steel* are trained with the settings of the [reproduction](reproduction.md), and were trained
again for this page: their accuracies differ from those there by what differs between two trainings. *Under-trained*
has seen one epoch of steel instead of six. A *linear probe* is a classifier of the pooled, frozen features of an
ImageNet backbone. *Unbalanced* steel has fewer training images of every further class, down to a sixteenth.

*paper* is the paper's variant: W of the vanilla classifier at the start, only the divergence from it, T = 2. *Alpha*
is the weight of a cross-entropy with the labels. *Balanced* gives every predicted class the same weight in the
divergence. *Centred* starts from W without what its rows have in common, which is naive CAPE exactly. *Shared first*
learns what all rows have in common for half of the epochs, which moves the saliency alone. *Clipped* scales large
gradients down, and *longer* makes at least 1,000 updates: both together are what `softcam_hub.post_fit` does, as guards
against failures and not for the accuracy. *Off the shelf* and *naive* learn nothing.
"""

FOUND = """## What was found

These sentences are not computed. They are read from the tables of this page.

- **The accuracy is kept.** The paper's own variant loses at most 0.2 points on test images of lesions and of every kind
  of steel, and gains 1.8 points on the linear probe of unbalanced classes. On marks it loses 1.7 points.
- **The linear probes are an easy case.** They are fitted to the end with weight decay, and not by steps of a seed:
  naive CAPE and CAPE off the shelf are the same there, and the three seeds are one probe. A probe that was trained for
  a few epochs can have more in common between the rows of W, and lose more; that was not measured.
- **Off the shelf is worse where the network is small and trained from scratch** (7 to 11 points on lesions and marks),
  and within 0.5 points on ImageNet features, except for the probe of unbalanced classes (2.2 points).
- **A cross-entropy with the labels (alpha 1) is the most promising change**: on validation images it is worse nowhere
  and 1.7 points better on marks. It asks for labels, which a post-fit needs nowhere else, and CAPE then no longer
  explains the vanilla classifier as it is.
- **Learning the shared part first does not help**, and learning it alone loses up to 1.4 points.
"""


def document(rows: list[Row]) -> str:
    """Return the page."""
    kinds = [name for name in KINDS if any(row["kind"] == name for row in rows)]
    return "\n".join(
        [
            ABOUT,
            f"## The rule\n\n{RULE}\n",
            outcome(rows, kinds),
            gains_table(rows, kinds),
            FOUND,
            ABOUT_CLASSIFIERS,
            *(table(rows, kind) for kind in kinds),
        ]
    )


def outcome(rows: list[Row], kinds: list[str]) -> str:
    """Say which variants pass, which one is chosen, which stay as options, and what was lost before and after."""
    others = [name for name in VARIANTS if name != PAPER]
    passing = [name for name in others if passes(rows, name, kinds)]
    options = [name for name in others if name not in passing and helps(rows, name, kinds)]
    chosen = max(
        passing, key=lambda name: statistics.fmean(_mean(rows, kind, name, "accuracy") for kind in kinds), default=""
    )
    if chosen:
        verb = "passes" if len(passing) == 1 else "pass"
        sentences = [f"Of {len(others)} variants, {_names(passing)} {verb} the rule."]
        sentences.append(f"*{chosen}* has the highest mean accuracy of them on validation images, and is the default.")
    else:
        sentences = [f"None of {len(others)} variants passes the rule. The paper's own variant stays the default."]
    if options:
        verb = "stays as an option" if len(options) == 1 else "stay as options"
        sentences.append(
            f"Without passing, {_names(options)} helped by two points on some vanilla classifier and {verb}."
        )
    else:
        sentences.append("No other variant helped by two points on any vanilla classifier.")
    sentences += [_nearly_perfect(rows, kind) for kind in DECIDING if _nearly_perfect(rows, kind)]
    measured = {row["variant"] for row in rows}
    wanted = dict.fromkeys([*UNTRAINED, PAPER, LIBRARY, *([chosen] if chosen else [])])
    shown = [name for name in wanted if name in measured]
    header = ["vanilla classifier", "deciding", "accuracy", *(f"{name}, difference" for name in shown)]
    body = [_loss_line(rows, kind, shown) for kind in kinds]
    library = f". *{LIBRARY}* is what `softcam_hub.post_fit` does" if LIBRARY in shown else ""
    told = (
        "Accuracy of the vanilla classifier on test images, and CAPE's difference to it in points, means over seeds"
        f"{library}:"
    )
    return f"## Outcome\n\n{' '.join(sentences)}\n\n{told}\n\n{markdown(header, body)}\n"


def _nearly_perfect(rows: list[Row], kind: str) -> str:
    """Say that a kind on which the paper's variant makes hardly a mistake decides against others, if it does."""
    papers = [row for row in rows if (row["kind"], row["variant"], row["split"]) == (kind, PAPER, "validation")]
    images, mistakes = (sum(row["images"] for row in papers), sum(map(_mistakes, papers)))
    if not papers or mistakes >= FEW:
        return ""
    wrong = f"{mistakes or 'none'} of {images} validation images"
    return (
        f"On {kind} the paper's variant is wrong in {wrong} of {len(papers)} seeds together, so that hardly any "
        "variant can be better there: data on which everything works decide against every change."
    )


def _mistakes(row: Row) -> int:
    return round((1 - row["accuracy"]) * row["images"])


def _loss_line(rows: list[Row], kind: str, variants: list[str]) -> list[str]:
    accuracy = _mean(rows, kind, PAPER, "vanilla_accuracy", "test")
    losses = [f"{100 * (_mean(rows, kind, name, 'accuracy', 'test') - accuracy):+.1f}" for name in variants]
    return [kind, "yes" if kind in DECIDING else "no", f"{100 * accuracy:.1f}", *losses]


def table(rows: list[Row], kind: str) -> str:
    """Render a line for every variant on one vanilla classifier: means over seeds, and the gains of every seed."""
    shown = [row for row in rows if row["kind"] == kind and row["split"] == "validation"]
    seeds = sorted({row["seed"] for row in shown})
    first = shown[0]
    theirs = ", ".join(
        f"{name.replace('_', ' ')} {_percent(_mean(rows, kind, PAPER, f'vanilla_{name}'))}" for name in SCORES
    )
    body = []
    for name in dict.fromkeys(row["variant"] for row in shown):
        cells = [_percent(_mean(rows, kind, name, column)) for column in (*SCORES, "disagreement")]
        for score in SCORES:
            own = gains(rows, name, kind, score) if name != PAPER else []
            cells.append(", ".join(f"{100 * gain:+.1f}" for gain in own) or "-")
        body.append([name, *cells])
    header = ["variant", "accuracy", "balanced accuracy", "disagreement", "gain", "gain, balanced"]
    about = (
        f"{first['trained_on']} training and {first['images']} validation images, seeds {', '.join(map(str, seeds))}. "
        f"The vanilla classifier has in %: {theirs}. *Gain* is the difference to the paper's variant in points, seed "
        "by seed."
    )
    return f"## {kind}\n\n{about}\n\n{markdown(header, body)}\n"


def _mean(rows: list[Row], kind: str, variant: str, column: str, split: str = "validation") -> float:
    """Return the mean over seeds."""
    found = [row for row in rows if (row["kind"], row["variant"], row["split"]) == (kind, variant, split)]
    return statistics.fmean(row[column] for row in found)


def gains_table(rows: list[Row], kinds: list[str]) -> str:
    """Render the mean gain of every variant on every vanilla classifier."""
    body = []
    for name in VARIANTS:
        if name != PAPER:
            found = [gains(rows, name, kind, "accuracy") for kind in kinds]
            body.append([name, *(f"{100 * statistics.fmean(seeds):+.1f}" if seeds else "-" for seeds in found)])
    told = "Difference to the paper's variant in points of accuracy on validation images, means over seeds:"
    return f"{told}\n\n{markdown(['variant', *kinds], body)}\n"


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
