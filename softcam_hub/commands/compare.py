"""`softcam-hub compare`: the difference of two explainers, with its interval and p-value."""

import argparse
import json
import math
from typing import Any

from ..arguments import ArgumentParser

HELP = "Compare two explainers of a benchmark: differences, their 95 % intervals and p-values."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="Folder of a benchmark, its rows.jsonl, or a file of values (values.jsonl, also as .gz). With two of "
        "them, A of the first is compared with B of the second, on the same images.",
    )
    parser.add_argument("first", metavar="A", help="Explainer, such as cape, or cape:model if it explains two models.")
    parser.add_argument("second", metavar="B", help="Explainer to compare it with.")
    parser.add_argument("--json", action="store_true", help="Print JSON, with one object per measure.")


def run(arguments: argparse.Namespace) -> None:
    """Compare, and print a line for every measure."""
    from ..evaluation.comparison import compare

    rows = compare(arguments.results, arguments.first, arguments.second)
    if arguments.json:
        no_interval = {"low": None, "high": None}  # JSON has no NaN
        print(json.dumps([row | (no_interval if math.isnan(row["low"]) else {}) for row in rows], indent=1))
    else:
        print(format_comparison(rows, arguments.first, arguments.second))


def format_comparison(rows: list[dict[str, Any]], first: str, second: str) -> str:
    """Format a comparison as a table with a sentence below it.

    Args:
        rows: Rows of `compare`.
        first: Name of the first explainer.
        second: Name of the second explainer.
    """
    from ..evaluation.report import COLUMNS, format_interval, format_score, markdown

    body = []
    for row in rows:
        name = row["measure"]
        numbers = [format_score(row[side], name) for side in ("first", "second", "difference")]
        interval = "-" if math.isnan(row["low"]) else format_interval((row["low"], row["high"]), name)
        p_values = [f"{row['p']:.3f}", f"{row['p_holm']:.3f}" + " *" * row["significant"]]
        body.append([COLUMNS[name][0], str(row["images"]), *numbers, interval, *p_values])
    header = ["measure", "images", first, second, "difference", "95 % interval", "p", "p (Holm)"]
    return (
        f"{markdown(header, body)}\n* The difference is significant after Holm's adjustment for the number of "
        "measures. Means and differences are of the images that have both values. The interval is that of a bootstrap "
        "over them, and p that of a permutation test, which exchanges the two explainers in some of the images."
    )
