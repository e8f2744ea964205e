"""Examine every architecture of the installed timm and write `softcam_hub/architectures.json`.

python -m tools.probe_timm            # about four minutes of one core
python -m tools.probe_timm --check    # compare with the committed table instead of writing it
python -m tools.probe_timm --check --every 8    # compare every eighth architecture: half a minute
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import timm

from softcam_hub.arguments import ArgumentParser
from softcam_hub.files import write_text
from softcam_hub.models.anatomy import examine
from softcam_hub.models.backbone import NoEvidenceMap
from softcam_hub.models.heads import BUILT_IN, HEADS

TABLE = Path(__file__).parents[1] / "softcam_hub" / "architectures.json"


def probe(names: list[str]) -> dict[str, list[str]]:
    """Return the architectures that admit evidence maps, by the type of their head."""
    architectures: dict[str, list[str]] = defaultdict(list)
    for name in names:
        try:
            architectures[examine(name).head_type].append(name)
        except NoEvidenceMap:
            continue
    return dict(sorted(architectures.items()))


def main() -> int:
    """Write the table or compare it, and return the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed table instead of writing it")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="with --check: every Nth architecture only")
    args = parser.parse_args()
    names = [name for name in timm.list_models() if name.partition("_")[0] not in HEADS]
    examined = names[:: args.every] if args.check else names
    measured = probe(examined)
    print({head_type: len(names) for head_type, names in measured.items()})
    if not args.check:
        table = {"timm": timm.__version__, "families": [head.family for head in BUILT_IN], "kinds": measured}
        write_text(TABLE, json.dumps(table, indent=1) + "\n")
        return 0
    committed = {head_type: {*names} for head_type, names in json.loads(TABLE.read_text())["kinds"].items()}
    unexamined = {*names} - {*examined}
    types = measured.keys() | committed.keys()
    differing = [name for name in types if {*measured.get(name, ())} != committed.get(name, set()) - unexamined]
    print(f"differs from the table in: {', '.join(differing)}" if differing else "the table is up to date")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
