"""Train and measure everything by which docs/reproduction.md judges the papers' claims.

make reproduce                                       # 2.5 hours of two cores; also writes docs/reproduction.md
python -m benchmarks.reproduction.reproduce --study screening --seeds 0
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
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.splits import Splits, load_splits
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.accuracy import measure_vanilla
from softcam_hub.loading import load_classifier
from softcam_hub.models.anatomy import examine
from softcam_hub.training import Config, parse, run
from softcam_hub.training.model import make_model
from softcam_hub.training.parsing import read_recipe

from ..timing import Row, environment, read_rows, replace_rows
from ..values import replace_values, values_by_explainer
from .findings import NOT_ALIGNED
from .temperature import calibrations

ROWS = Path(__file__).parents[1] / "results" / "reproduction.jsonl"
RUNS = Path("runs") / "reproduction"
SOFTCAM = ("softcam", "softcam-sparse")
CAPE = ("cape-direct", "cape-ts", "cape-pf")
MEASURES = "table localisation sensitivity gini evidence"
DATA = ("data", "train_count", "eval_count", "data_size", "data_seed")
"""Settings of the data, which the benchmarks share with the runs."""

CHAIN = ("study", "seed")
"""Columns that name a chain."""

KEPT = ("explainer", "explains", "images", "annotated", "evidence_precision_images")
"""Columns of a benchmark's row that are kept where they exist, besides its numbers and curves."""


@dataclass(frozen=True)
class Study:
    """A data set and a backbone, with the runs that are trained on them.

    Args:
        data: Name of a generated data set.
        runs: Recipes that are run beside `vanilla`.
        backbone: Backbone that replaces test_resnet, the backbone of the recipes.
        sweep: Values of l1 for further runs of `softcam-sparse`.
        fine_tuned: Start the runs from the trained vanilla classifier. Its post-hoc maps are not compared
            then, because it was trained for fewer epochs.
        limit: Number of test images to explain.
        settings: Settings that differ from the recipes.
    """

    data: str
    runs: tuple[str, ...]
    backbone: str = "test_resnet"
    sweep: tuple[float, ...] = ()
    fine_tuned: bool = False
    limit: int = 96
    settings: dict[str, Any] = field(default_factory=dict)


SMALL = {  # the longest study comes first, so that no core waits for long at the end
    "lesions": Study("lesions", (*SOFTCAM, *CAPE), sweep=(0.003, 0.1, 1.0)),
    "marks": Study(
        "marks",
        ("cape-ts", "cape-ts-selective", "cape-pf", "cape-pf-selective"),
        settings={"train_count": 3072, "eval_count": 480, "epochs": 12},
    ),
    "fine-tuning": Study("lesions", SOFTCAM, sweep=(0.1, 0.3, 1.0, 3.0), fine_tuned=True),
    "screening": Study("screening", (*SOFTCAM, "cape-pf")),
    "second backbone": Study(
        "lesions", (*SOFTCAM, "cape-pf"), "test_efficientnet", settings={"model_args": "output_stride=8"}
    ),
}

_AT = {"resnet50": ("output_stride=16", 1e-3), "vgg16": ("", 1e-4), "swinv2_base_window8_256": ("", 1e-4)}
"""Backbone -> its arguments and learning rate."""

_LARGE = {"train_count": 6000, "eval_count": 800, "epochs": 20, "mixed_precision": "bf16", "pretrained": True}
LARGE = {
    f"{backbone} at {size}": Study(
        "lesions",
        (*SOFTCAM, *(CAPE[:2] if backbone == "vgg16" else CAPE)),
        backbone,
        limit=200,
        settings={"model_args": args, "lr": lr, "image_size": size, "data_size": size, **_LARGE},
    )
    for backbone, (args, lr) in _AT.items()
    for size in (224, 448)
}

_TINY = {"train_count": 64, "eval_count": 16, "image_size": 64, "data_size": 64, "epochs": 1, "warmup_epochs": 0}
QUICK = {
    "quick": Study("lesions", (*SOFTCAM, *CAPE), sweep=(1.0,), limit=8, settings=_TINY),
    "quick fine-tuning": Study("lesions", ("softcam",), fine_tuned=True, limit=8, settings=_TINY),
}


class Chain:
    """A study with one seed: its runs, one after another, and their rows.

    Args:
        name: Name of the study.
        study: Data set and backbone.
        seed: Seed of images, weights and batches.
        runs: Folder of all runs.
    """

    def __init__(self, name: str, study: Study, seed: int, runs: Path = RUNS) -> None:
        self.name, self.study, self.seed = name, study, seed
        self.folder = runs / name / str(seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def rows(self) -> list[Row]:
        """Train and measure, and read results that exist already."""
        began = time.monotonic()
        try:
            results = list(self._results())
        finally:
            seconds = self._add_seconds(time.monotonic() - began)
        results.append(("chain", {"seconds": seconds, **environment()}))
        return [{"study": self.name, "seed": self.seed, "kind": kind, **_rounded(row)} for kind, row in results]

    def config(self, recipe: str, l1: float | None = None) -> Config:
        """Return the settings of one run."""
        output = self._output(recipe, l1)
        settings = {**self.study.settings, "data": self.study.data, "seed": self.seed, "data_seed": self.seed}
        settings |= {
            "channels_last": True,  # a third less time on CPUs, too
            "model": read_recipe(f"reproduction/{recipe}")["model"].replace("test_resnet", self.study.backbone),
        }
        if recipe.startswith(
            "cape-pf"
        ):  # trains the head of the vanilla classifier, with the learning rate of the recipe
            settings |= {"init": self.vanilla, "pretrained": False}
            settings.pop("lr", None)
        elif recipe != "vanilla" and self.starts_as_vanilla:
            settings |= {"init": self.vanilla if self.study.fine_tuned else self.start, "pretrained": False}
        if l1 is not None:
            settings["l1"] = l1
        flags = [f"--{name}={value}" for name, value in settings.items()]
        resume = ["--resume"] if (output / "settings.yaml").exists() else []
        return parse([f"--recipe=reproduction/{recipe}", f"--output={output}", *flags, *resume])

    @cached_property
    def splits(self) -> Splits:
        """Images of all runs."""
        return load_splits(self.config("vanilla").data)

    @property
    def start(self) -> Path:
        """Folder of the vanilla classifier before it is trained."""
        return self.folder / "start"

    @property
    def vanilla(self) -> Path:
        """Folder of the vanilla classifier when it is trained."""
        return self.folder / "vanilla" / "model"

    @cached_property
    def starts_as_vanilla(self) -> bool:
        """Whether the vanilla classifier has weights for an evidence map."""
        return examine(self.study.backbone, **self.config("vanilla").model.architecture_args()).exact

    def _output(self, recipe: str, l1: float | None = None) -> Path:
        """Return the folder of a run."""
        return self.folder / (recipe if l1 is None else f"softcam-l1-{l1:g}")

    def _results(self) -> Iterator[tuple[str, Row]]:
        """Train and measure one run after another, and return the kind of each row with the row."""
        make_model(self.config("vanilla"), self.splits).save_pretrained(self.start)
        runs = [(recipe, None) for recipe in ("vanilla", *self.study.runs)]
        for recipe, l1 in [*runs, *(("softcam-sparse", l1) for l1 in self.study.sweep)]:
            config = self.config(recipe, l1)
            common = {"run": self._output(recipe, l1).name, "l1": config.model.l1, "epochs": config.optimization.epochs}
            yield "training", {**common, "images": config.data.train_count, **run(config)}
        yield from (("variant", row) for row in self._variants())
        yield from self._explanations()
        for recipe in (name for name in self.study.runs if name in CAPE):
            yield from (("calibration", {"run": recipe, **row}) for row in self._calibrations(recipe))

    def _variants(self) -> list[Row]:
        """Measure the accuracy of the vanilla classifier, and of CAPE with its weights, naive and off the shelf."""
        compared = any(run in CAPE for run in self.study.runs)
        if not compared or not load_classifier(self.folder / self.study.runs[0] / "model").model.exact:
            return []
        return measure_vanilla(load_classifier(self.vanilla), self.splits.test, self.study.data, 50, self.device)

    def _explanations(self) -> Iterator[tuple[str, Row]]:
        """Measure post-hoc maps of the vanilla classifier, and the maps of each run; return kinds and rows."""
        if not self.study.fine_tuned:
            yield from self._benchmark("vanilla")
        for recipe in self.study.runs:
            yield from self._benchmark(recipe, "softcam" if recipe.startswith("softcam") else "cape mu-cape")
        for l1 in self.study.sweep:
            yield from self._benchmark(self._output("", l1).name, "softcam", "table localisation gini evidence")

    def _benchmark(
        self, name: str, explainers: str | None = None, measures: str = MEASURES
    ) -> Iterator[tuple[str, Row]]:
        """Measure maps where their cells look, with the values of every image, and drawn as squares beside it."""
        data = {key: getattr(self.config("vanilla").data, key) for key in DATA}
        options = {"explainers": explainers, "measures": measures, "limit": self.study.limit, "seed": self.seed}
        sizes = {"batch_size": 25, "shard_size": 100}
        model, output = self.folder / name / "model", self.folder / "benchmark"
        rows = benchmark(model, output / name, per_image=True, **options, **sizes, **data)
        yield from (("explanation", {"run": name, **_kept(row)}) for row in rows)
        for row in values_by_explainer(read_rows(output / name / "values.jsonl")):
            yield "values", {"run": name, **row}
        moved = " ".join(row["explainer"] for row in rows if row["map_offset"])
        if moved:
            options |= {"explainers": moved, "measures": "localisation"}
            rows = benchmark(model, output / f"{name}, not aligned", aligned=False, **options, **sizes, **data)
            yield from ((NOT_ALIGNED, {"run": name, **_kept(row)}) for row in rows)

    def _calibrations(self, recipe: str) -> list[Row]:
        """Measure a CAPE run at several temperatures."""
        classifier = load_classifier(self.folder / recipe / "model")
        classifier.model.to(self.device)
        settings = self.config(recipe).model
        return calibrations(classifier, self.splits, None if settings.mode == "direct" else settings.temperature)

    def _add_seconds(self, now: float) -> float:
        """Add the seconds of this call to those of earlier ones that were interrupted."""
        file = self.folder / "seconds.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        total = now + (json.loads(file.read_text()) if file.exists() else 0.0)
        file.write_text(json.dumps(total))
        return total


def _kept(row: Row) -> Row:
    """Return what is kept of a row of a benchmark: what was measured, numbers and curves."""
    numbers = {key: value for key, value in row.items() if isinstance(value, float | list) and key != "hold_out"}
    return {**{key: row[key] for key in KEPT if key in row}, **numbers}


def _rounded(row: Row) -> Row:
    """Round numbers to six digits, as further digits differ between machines, and replace NaN by None."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(one) for one in value]
        if not isinstance(value, float):
            return value
        return None if math.isnan(value) else float(f"{value:.6g}")

    return {name: short(value) for name, value in row.items()}


def chain_rows(name: str, study: Study, seed: int, threads: int) -> list[Row]:
    """Compute the rows of a chain in a process of its own."""
    torch.set_num_threads(threads)
    return Chain(name, study, seed).rows()


def run_chains(chains: list[tuple[str, Study, int]], processes: int) -> list[str]:
    """Run chains side by side, write the rows of each as it ends, and return the failures."""
    threads, failures = max(1, (os.cpu_count() or 1) // processes), []
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {pool.submit(chain_rows, *chain, threads): chain for chain in chains}
        for job in as_completed(jobs):
            name, _, seed = jobs[job]
            try:
                rows = job.result()
                replace_rows([row for row in rows if row["kind"] != "values"], ROWS, CHAIN)
                replace_values([row for row in rows if row["kind"] == "values"], "reproduction", CHAIN)
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
    parser.add_argument("--study", nargs="*", help=f"studies to run, of {', '.join([*SMALL, *LARGE])}; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="seeds to run")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="number of chains side by side; 1 on a GPU"
    )
    args = parser.parse_args()
    if args.quick:
        try_out()
        return
    studies = LARGE if args.large else SMALL
    for name in args.study or ():
        if name not in studies:
            parser.error(f"unknown study {name!r}: expected some of {', '.join(studies)}")
    chains = [(name, studies[name], seed) for name in args.study or studies for seed in args.seeds]
    failures = run_chains(chains, 1 if args.large else min(args.processes, len(chains)))
    if failures:
        sys.exit("these chains failed; run the same command again to repeat them:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
