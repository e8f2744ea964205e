"""`softcam-hub list`: list the architectures, and the sizes of their maps."""

import argparse
import fnmatch
import json
from typing import Any

from ..architectures import EXACT, architectures, read_table
from ..arguments import did_you_mean

HELP = "List the timm architectures that can explain themselves."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
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
        "--map-size", action="store_true", help="Build each network and measure the size of its maps (a second each)."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON, with one object per architecture.")


def run(arguments: argparse.Namespace) -> None:
    """Print the architectures that match."""
    found = find_architectures(arguments.pattern, arguments.exact, arguments.trained)
    if not found:
        raise ValueError(explain_no_match(arguments))
    if arguments.map_size:
        found = [{**architecture, **measure_sizes(architecture["architecture"])} for architecture in found]
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    width = max(len(architecture["architecture"]) for architecture in found)
    for architecture in found:
        sizes = ""
        if "map_size" in architecture:
            sizes = "{}x{} at {} px".format(*architecture["map_size"], architecture["input_size"][1])
        exactness = "exact" if architecture["exact"] else "head to train"
        print(f"{architecture['architecture']:{width}}  {exactness:13}  {sizes}".rstrip())
    hint = "" if arguments.map_size else "; --map-size also measures their maps"
    names = " and ".join(f"{family}_NAME" for family in read_table()["families"])
    print(f"{len(found)} architectures, each as {names}{hint}")


def explain_no_match(arguments: argparse.Namespace) -> str:
    """Say why no architecture matches, and which option to change."""
    others = len(find_architectures(arguments.pattern, exact=False, trained=False))
    if not others:
        hint = did_you_mean(arguments.pattern, architectures()) or ": try a pattern with *, such as 'resnet*'"
        return f"no architecture matches {arguments.pattern!r}{hint}"
    exactness, option = ("exact", "--exact") if arguments.exact else ("one whose head must be trained", "--trained")
    return f"{others} architectures match {arguments.pattern!r}, but none is {exactness}: leave out {option}"


def find_architectures(pattern: str, exact: bool, trained: bool) -> list[dict[str, Any]]:
    """Find architectures by name, with or without a family in front of it.

    Args:
        pattern: Name, with * and ? as wildcards.
        exact: Return only architectures whose pretrained classifier makes the maps.
        trained: Return only architectures whose head must be trained first.
    """
    family, _, name = pattern.partition("_")
    pattern = name if family in read_table()["families"] else pattern
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
