"""`softcam-hub list`: which architectures there are, and what their maps look like."""

import argparse
import fnmatch
import json
from typing import Any

HELP = "list the timm architectures that can explain themselves"

MEASURED = 20
"""Map sizes are measured for up to so many architectures, as each must be built for it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern", nargs="?", default="*", help="names to list, such as 'resnet*' or 'cape_swin*' [all]"
    )
    exactness = parser.add_mutually_exclusive_group()
    exactness.add_argument("--exact", action="store_true", help="only those whose pretrained classifier makes the maps")
    exactness.add_argument("--trained", action="store_true", help="only those whose head must be trained first")
    parser.add_argument("--map_size", action="store_true", help=f"measure map sizes of more than {MEASURED} names too")
    parser.add_argument("--json", action="store_true", help="JSON, one object per architecture")


def run(arguments: argparse.Namespace) -> None:
    found = matching(arguments.pattern, arguments.exact, arguments.trained)
    if not found:
        raise ValueError(nothing_found(arguments))
    if arguments.map_size or len(found) <= MEASURED:
        for row in found:
            row |= measured(row["architecture"])
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    width = max(len(row["architecture"]) for row in found)
    for row in found:
        sizes = "{}x{} at {} px".format(*row["map_size"], row["input_size"][1]) if "map_size" in row else ""
        print(f"{row['architecture']:{width}}  {'exact' if row['exact'] else 'head to train':13}  {sizes}".rstrip())
    hint = "" if "map_size" in found[0] else "; --map_size also measures their maps"
    print(f"{len(found)} architectures, each as softcam_NAME and cape_NAME{hint}")


def nothing_found(arguments: argparse.Namespace) -> str:
    others = len(matching(arguments.pattern, exact=False, trained=False))
    if not others:
        return f"no architecture matches {arguments.pattern!r}: try a pattern with *, such as 'resnet*'"
    kind, option = ("exact", "--exact") if arguments.exact else ("one whose head must be trained", "--trained")
    return f"{others} architectures match {arguments.pattern!r}, but none is {kind}: leave out {option}"


def matching(pattern: str, exact: bool, trained: bool) -> list[dict[str, Any]]:
    """Architectures by name, with or without the family before it."""
    from ..models.heads import HEADS
    from ..registry import EXACT, architectures

    family, _, rest = pattern.partition("_")
    pattern = rest if family in HEADS else pattern
    rows = [
        {"architecture": name, "exact": kind in EXACT, "head": kind}
        for name, kind in sorted(architectures().items())
        if fnmatch.fnmatchcase(name, pattern)
    ]
    return [row for row in rows if not (exact and not row["exact"]) and not (trained and row["exact"])]


def measured(architecture: str) -> dict[str, Any]:
    """Input and map size at the default input, from a network without weights."""
    import torch

    from ..models.classifier import build

    with torch.device("meta"), torch.no_grad():
        model = build(f"softcam_{architecture}").eval()
        features = model.forward_features(torch.zeros(1, *model.input_size))
    return {"input_size": list(model.input_size), "map_size": list(features.shape[-2:])}
