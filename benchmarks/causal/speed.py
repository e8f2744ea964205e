"""Measure how long the causal study of 200 images takes with all explainers, and write a row.

python -m benchmarks.causal.speed    # ten minutes of one core at most

The shipped model is explained by its own maps, and the vanilla classifier with its weights by every post-hoc method.
"""

import argparse
import tempfile
import time
from pathlib import Path

import timm

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation import benchmark

from .. import timing
from ..timing import environment, rounded, write_rows
from .study import LIMIT, SETTINGS

ROWS = Path(__file__).parents[1] / "results" / "causal_speed.jsonl"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"number of test images [{LIMIT}, which is written]")
    timing.add_threads(parser)
    arguments = parser.parse_args()
    timing.prepare(arguments.threads)
    model = timm.create_model(f"local-dir:{softcam_hub.CAPE_LESIONS}", pretrained=True).eval()
    vanilla = softcam_hub.to_vanilla(model).eval()
    settings = SETTINGS | {"data": "lesions", "limit": arguments.limit, "explainers": "all", "measures": "causal"}
    with tempfile.TemporaryDirectory() as folder:
        before = time.perf_counter()
        rows = benchmark(model, folder, vanilla=vanilla, **settings)
        minutes = (time.perf_counter() - before) / 60
    row = {"images": rows[0]["images"], "explainers": [one["explainer"] for one in rows], "minutes": rounded(minutes)}
    row |= {"model": "cape_lesions", **environment()}
    print(row)
    if arguments.limit == LIMIT:
        write_rows([row], ROWS)


if __name__ == "__main__":
    main()
