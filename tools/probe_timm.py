"""Examine every architecture of the installed timm and write `softcam_hub/architectures.json`.

python tools/probe_timm.py            # about four minutes of one core
python tools/probe_timm.py --check    # compare with the committed table instead of writing it
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

TABLE = Path(__file__).parents[1] / "softcam_hub" / "architectures.json"


def probe(names: list[str]) -> dict[str, list[str]]:
    """Kind -> architectures, for those that admit evidence maps."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in names:
        try:
            kinds[examine(name).kind].append(name)
        except NoEvidenceMap:
            continue
    return {kind: kinds[kind] for kind in sorted(kinds)}


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed table instead of writing it")
    check = parser.parse_args().check
    names = [name for name in timm.list_models() if not name.startswith(("softcam_", "cape_"))]
    kinds = probe(names)
    print({kind: len(found) for kind, found in kinds.items()})
    if not check:
        write_text(TABLE, json.dumps({"timm": timm.__version__, "kinds": kinds}, indent=1) + "\n")
        return 0
    committed = json.loads(TABLE.read_text())["kinds"]
    differing = [k for k in kinds.keys() | committed.keys() if set(kinds.get(k, [])) != set(committed.get(k, []))]
    print(f"differs from the table in: {', '.join(differing)}" if differing else "the table is up to date")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
