"""Train and measure everything by which docs/reproduction.md judges the papers' claims.

make reproduce                                       # six hours of two cores; also writes docs/reproduction.md
python -m benchmarks.reproduction.reproduce --study screening --seeds 0
make reproduce-steel PHOTOGRAPHS=FOLDER              # photographs of NEU-DET: eight hours of two cores
python -m benchmarks.reproduction.reproduce --photographs FOLDER --study steel --seeds 0 --places-only
python -m benchmarks.reproduction.reproduce --large  # ResNet-50, VGG-16 and SwinV2 at 224 and 448 px, for a GPU
python -m benchmarks.reproduction.reproduce --quick               # a smoke test: tiny runs that write nothing

- A study is a data set and a backbone. A chain is a study with one seed for images, weights and batches.
  Chains are independent, and run side by side with one thread each. Finished parts of a chain are not
  computed again.
- All runs of a chain have the same images, epochs, batches and first weights, so that they differ in their
  loss and not by chance. Post-fitting trains the head for as many epochs, after the vanilla classifier.
  Nothing is chosen on the test split: the best epoch and the fitted temperature are chosen on validation
  data, and learning rates and penalties are those of the recipes.
- The runs of a study that fine-tunes start from the trained vanilla classifier, as the papers start from
  ImageNet.
- VGG's hidden layers are new layers on the grid, so that its vanilla classifier has no weights for an
  evidence map. With VGG there is no post-fitting and no CAPE off the shelf, and runs start from weights of
  their own.
- Runs and benchmarks are written to runs/reproduction/STUDY/SEED/, rows to
  benchmarks/results/reproduction.jsonl, and the values of every image to
  benchmarks/results/values/reproduction.jsonl.gz.
"""

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from softcam_hub.arguments import ArgumentParser
from softcam_hub.memory import keep_freed_memory

from ..timing import Row, replace_rows
from ..values import replace_values
from .chain import Chain
from .steel import SteelChain, missing_manifest
from .studies import LARGE, QUICK, SMALL, STEEL, Study

ROWS = Path(__file__).parents[1] / "results" / "reproduction.jsonl"
KEY = ("study", "seed")
"""Columns that name a chain."""


def chain_rows(
    name: str, study: Study, seed: int, photographs: Path | None, places_only: bool, threads: int
) -> list[Row]:
    """Compute the rows of a chain in a process of its own."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    if photographs is not None:
        return SteelChain(name, study, seed, photographs, places_only=places_only).rows()
    return Chain(name, study, seed).rows()


def run_chains(
    chains: list[tuple[str, Study, int]], photographs: Path | None, processes: int, places_only: bool = False
) -> list[str]:
    """Run chains side by side, write the rows of each as it ends, and return the failures."""
    threads, failures = max(1, (os.cpu_count() or 1) // processes), []
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {pool.submit(chain_rows, *chain, photographs, places_only, threads): chain for chain in chains}
        for job in as_completed(jobs):
            name, _, seed = jobs[job]
            try:
                rows = job.result()
                replace_rows([row for row in rows if row["kind"] != "values"], ROWS, KEY)
                replace_values([row for row in rows if row["kind"] == "values"], "reproduction", KEY)
                print(f"finished: {name}, seed {seed}", flush=True)
            except Exception as error:  # the other chains continue
                failures.append(f"{name}, seed {seed}: {type(error).__name__}: {error}")
    return failures


def try_out() -> None:
    """Run a tiny study in a temporary folder."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, study in QUICK.items():
            for row in Chain(name, study, 0, Path(folder)).rows():
                print(json.dumps(row))


def main() -> None:
    """Run the chains that the command line names."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run tiny studies, and write nothing")
    parser.add_argument("--large", action="store_true", help="run the larger variant, for a GPU")
    parser.add_argument("--photographs", type=Path, help="run the studies on steel, with NEU-DET in this folder")
    parser.add_argument(
        "--places-only", action="store_true", help="locate the maps on photographs, without the other scores of maps"
    )
    names = ", ".join([*SMALL, *STEEL, *LARGE])
    parser.add_argument("--study", nargs="*", help=f"studies to run, of {names}; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="seeds to run")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="number of chains side by side; 1 on a GPU"
    )
    args = parser.parse_args()
    if args.quick:
        try_out()
        return
    studies = LARGE if args.large else STEEL if args.photographs else SMALL
    if args.photographs and not (args.photographs / "manifest.csv").is_file():
        parser.error(missing_manifest(args.photographs))
    for name in args.study or ():
        if name not in studies:
            parser.error(f"unknown study {name!r}: expected some of {', '.join(studies)}")
    chains = [(name, studies[name], seed) for name in args.study or studies for seed in args.seeds]
    processes = 1 if args.large else min(args.processes, len(chains))
    failures = run_chains(chains, args.photographs, processes, args.places_only)
    if failures:
        sys.exit("these chains failed; run the same command again to repeat them:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
