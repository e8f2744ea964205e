"""`softcam-hub list`: list the architectures, and the sizes of their maps."""

import argparse
import fnmatch
import json
from typing import Any

HELP = "List the timm architectures that can explain themselves."

MAX_MEASURED = 20
"""Number of architectures whose maps are measured by default. Each architecture must be built for it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pattern", nargs="?", default="*", help="Names to list, such as 'resnet*' or 'cape_swin*'. [all]"
    )
    exactness = parser.add_mutually_exclusive_group()
    exactness.add_argument(
        "--exact", action="store_true", help="List only architectures whose pretrained classifier makes the maps."
    )
    exactness.add_argument(
        "--trained", action="store_true", help="List only architectures whose head must be trained first."
    )
    parser.add_argument(
        "--map_size", action="store_true", help=f"Measure the map sizes of more than {MAX_MEASURED} architectures too."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON, with one object per architecture.")


def run(arguments: argparse.Namespace) -> None:
    from ..models.heads import HEADS

    architectures = find_architectures(arguments.pattern, arguments.exact, arguments.trained)
    if not architectures:
        raise ValueError(explain_no_match(arguments))
    if arguments.map_size or len(architectures) <= MAX_MEASURED:
        for architecture in architectures:
            architecture |= measure_sizes(architecture["architecture"])
    if arguments.json:
        print(json.dumps(architectures, indent=1))
        return
    width = max(len(architecture["architecture"]) for architecture in architectures)
    for architecture in architectures:
        sizes = ""
        if "map_size" in architecture:
            sizes = "{}x{} at {} px".format(*architecture["map_size"], architecture["input_size"][1])
        exactness = "exact" if architecture["exact"] else "head to train"
        print(f"{architecture['architecture']:{width}}  {exactness:13}  {sizes}".rstrip())
    hint = "" if "map_size" in architectures[0] else "; --map_size also measures their maps"
    names = " and ".join(f"{family}_NAME" for family in HEADS)
    print(f"{len(architectures)} architectures, each as {names}{hint}")


def explain_no_match(arguments: argparse.Namespace) -> str:
    """Say why no architecture matches, and which option to change."""
    others = len(find_architectures(arguments.pattern, exact=False, trained=False))
    if not others:
        return f"no architecture matches {arguments.pattern!r}: try a pattern with *, such as 'resnet*'"
    exactness, option = ("exact", "--exact") if arguments.exact else ("one whose head must be trained", "--trained")
    return f"{others} architectures match {arguments.pattern!r}, but none is {exactness}: leave out {option}"


def find_architectures(pattern: str, exact: bool, trained: bool) -> list[dict[str, Any]]:
    """Find architectures by name, with or without a family in front of it.

    Args:
        pattern: Name, with * and ? as wildcards.
        exact: Return only architectures whose pretrained classifier makes the maps.
        trained: Return only architectures whose head must be trained first.
    """
    from ..models.heads import HEADS
    from ..registry import EXACT, architectures

    family, _, name = pattern.partition("_")
    pattern = name if family in HEADS else pattern
    matches = [
        {"architecture": name, "exact": head in EXACT, "head": head}
        for name, head in sorted(architectures().items())
        if fnmatch.fnmatchcase(name, pattern)
    ]
    return [match for match in matches if not (exact and not match["exact"]) and not (trained and match["exact"])]


def measure_sizes(architecture: str) -> dict[str, Any]:
    """Return the default input size and the size of the maps, measured on a network without weights."""
    import torch

    from ..models.classifier import build

    with torch.device("meta"), torch.no_grad():
        model = build(f"softcam_{architecture}").eval()
        features = model.forward_features(torch.zeros(1, *model.input_size))
    return {"input_size": list(model.input_size), "map_size": list(features.shape[-2:])}
