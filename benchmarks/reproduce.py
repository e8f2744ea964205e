"""Train and measure everything that docs/reproduction.md says about the papers' claims.

make reproduce                                       # on two cores; docs/reproduction.md is derived at the end
python benchmarks/reproduce.py --study screening --seeds 0
python benchmarks/reproduce.py --large               # ResNet-50, VGG-16 and SwinV2 at 224 and 448: for a GPU

- A study is a data set and a backbone, a chain is a study with one seed: of the images, the weights and the batches.
  Chains are independent and run side by side, one thread each; what a chain has finished is not done again.
- Every run of a chain has the same budget. Nothing is chosen on the test split: the best epoch is chosen on validation
  data, learning rates and penalties are those of the recipes.
- Runs and benchmarks go to runs/reproduction/STUDY/SEED/, rows to benchmarks/results/reproduction.jsonl.
"""

import argparse
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from timing import Row, write
from torch import Tensor, nn

from softcam_hub.benchmarking import benchmark
from softcam_hub.benchmarking.accuracy import rows_of_twin
from softcam_hub.benchmarking.models import load_classifier
from softcam_hub.benchmarking.shards import samples
from softcam_hub.data.loading import DataConfig, Rows, load_splits
from softcam_hub.training import parse, run
from softcam_hub.training.config import read_recipe
from softcam_hub.training.metrics import calibration_error

ROWS = Path(__file__).parent / "results" / "reproduction.jsonl"
RUNS = Path("runs") / "reproduction"
DEFAULT_L1 = 0.03
SWEEP = (0.01, 0.1, 0.3, 1.0)
SOFTCAM = ("softcam", "softcam-sparse")
CAPE = ("cape-direct", "cape-ts", "cape-pf")
SELECTIVE = ("cape-ts", "cape-ts-selective", "cape-pf", "cape-pf-selective")

Study = dict[str, Any]

SMALL: dict[str, Study] = {
    "screening": {"data": "screening", "runs": (*SOFTCAM, "cape-direct", "cape-pf")},
    "lesions": {"data": "lesions", "runs": (*SOFTCAM, *CAPE), "sweep": True},
    "marks": {"data": "marks", "runs": SELECTIVE, "train_count": 3072, "eval_count": 480, "epochs": 12},
    "second backbone": {"data": "lesions", "runs": (*SOFTCAM, "cape-pf"), "backbone": "test_efficientnet"},
}
"""Study -> its runs beside `vanilla`, and where its settings are not those of the recipes."""

_LARGE = {"model_args": "", "train_count": 6000, "eval_count": 800, "epochs": 20, "mixed_precision": "bf16"}
LARGE: dict[str, Study] = {
    f"{backbone} at {size}": {
        "data": "lesions",
        "runs": (*SOFTCAM, *CAPE),
        "backbone": backbone,
        "image_size": size,
        "data_size": size,
        "lr": lr,
        **_LARGE,
    }
    for (backbone, lr), size in product(
        {"resnet50": 1e-3, "vgg16": 1e-4, "swinv2_base_window8_256": 1e-4}.items(), (224, 448)
    )
}


class Chain:
    """A study with one seed: its runs, one after another, and the rows they leave.

    Args:
        name: of the study.
        study: its settings.
        seed: of everything.
    """

    def __init__(self, name: str, study: Study, seed: int) -> None:
        self.name, self.seed = name, seed
        self.runs, self.sweep = study["runs"], study.get("sweep", False)
        self.backbone = study.get("backbone")
        own = {key: value for key, value in study.items() if key not in ("runs", "sweep", "backbone")}
        self.settings = {**own, "seed": seed, "data_seed": seed}
        self.folder = RUNS / name / str(seed)

    def rows(self) -> Iterator[Row]:
        """Train and measure; everything that is there already is read."""
        for kind, found in self._found():
            yield {"study": self.name, "seed": self.seed, "kind": kind, **found}

    def _found(self) -> Iterator[tuple[str, Row]]:
        for recipe in ("vanilla", *self.runs):
            yield "training", {"run": recipe, **self._train(recipe)}
        for l1 in SWEEP if self.sweep else ():
            yield "training", {"run": _swept(l1), "l1": l1, **self._train("softcam-sparse", l1)}
        yield from (("variant", row) for row in self._variants())
        yield from (("explanation", row) for row in self._explanations())
        for recipe in ("cape-pf", "cape-ts", "cape-direct"):
            if recipe in self.runs:
                yield from (("calibration", {"run": recipe, **row}) for row in self._calibrations(recipe))

    def _train(self, recipe: str, l1: float | None = None) -> Row:
        output = self.folder / (recipe if l1 is None else _swept(l1))
        given = {**self.settings, "output": output}
        if self.backbone:
            given["model"] = read_recipe(f"reproduction/{recipe}")["model"].replace("test_resnet", self.backbone)
        if recipe.startswith("cape-pf"):
            given["init"] = self.folder / "vanilla" / "model"
        if l1 is not None:
            given["l1"] = l1
        flags = [f"--{name}={value}" for name, value in given.items()]
        resume = ["--resume"] if (output / "settings.yaml").exists() else []
        return run(parse([f"--recipe=reproduction/{recipe}", *flags, *resume]))

    def _data(self) -> DataConfig:
        config = parse(
            ["--recipe=reproduction/vanilla", *(f"--{name}={value}" for name, value in self.settings.items())]
        )
        return config.data

    def _test(self) -> Rows:
        return load_splits(self._data()).test

    def _variants(self) -> list[Row]:
        """Accuracy of the vanilla model, and of CAPE with its weights: naive, and off the shelf."""
        twin = load_classifier(self.folder / "vanilla" / "model")
        return rows_of_twin(twin, self._test(), self._data().data, 50, torch.device("cpu"))

    def _explanations(self) -> Iterator[Row]:
        """Post-hoc maps of the black box beside the maps of each run."""
        vanilla = self.folder / "vanilla" / "model"
        data = {
            name: getattr(self._data(), name)
            for name in ("data", "train_count", "eval_count", "data_size", "data_seed")
        }
        measures = "table localisation sensitivity gini"
        common = {"measures": measures, "limit": 200, "batch_size": 25, "shard_size": 100, "seed": self.seed, **data}
        for row in benchmark(vanilla, self.folder / "benchmark" / "vanilla", **common):
            yield {"run": "vanilla", **_plain(row)}
        swept = [_swept(l1) for l1 in SWEEP] if self.sweep else []
        for recipe in (*self.runs, *swept):
            native = "softcam" if recipe.startswith("softcam") else "cape mu-cape"
            model, output = self.folder / recipe / "model", self.folder / "benchmark" / recipe
            for row in benchmark(model, output, explainers=native, **common):
                yield {"run": recipe, **_plain(row)}

    def _calibrations(self, recipe: str) -> Iterator[Row]:
        """Calibration with T' as learnt, divided by T, and fitted to validation data."""
        model, splits = load_classifier(self.folder / recipe / "model"), load_splits(self._data())
        (known, answers), (test, labels) = (features_of(model, rows) for rows in (splits.validation, splits.test))
        learnt, bootstrap = (
            float(model.head.log_temperature),
            parse([f"--recipe=reproduction/{recipe}"]).model.temperature,
        )
        fitted = fit_temperature(model.head, known, answers)
        choices = {"learnt": learnt, "fitted on validation data": fitted}
        if recipe != "cape-direct":
            choices["divided by T"] = learnt - math.log(bootstrap)
        for name, value in choices.items():
            yield {"temperature": name, "value": math.exp(value), **calibration(model.head, value, test, labels)}


def _swept(l1: float) -> str:
    return f"softcam-l1-{l1:g}"


def _plain(row: Row) -> Row:
    """A benchmark's row without what is the same in all of them."""
    kept = ("explainer", "explains", "images", "annotated", "torch", "timm")
    return {name: value for name, value in row.items() if name in kept or isinstance(value, float | list)}


@torch.no_grad()
def features_of(model: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
    """Features (N, K, H, W) and labels (N,) of a whole split."""
    images = samples(model, rows)
    found = [images[index] for index in range(len(images))]
    pixels = torch.stack([one["pixel_values"] for one in found])
    return torch.cat([model.forward_features(part) for part in pixels.split(50)]), torch.stack(
        [o["labels"] for o in found]
    )


@torch.no_grad()
def with_temperature(head: nn.Module, value: float, features: Tensor) -> Tensor:
    """log p̂ (N, C), with T' = exp(value)."""
    head.log_temperature.fill_(value)
    return torch.cat([head(part) for part in features.split(50)])


def fit_temperature(head: nn.Module, features: Tensor, labels: Tensor) -> float:
    """log T' with the least cross-entropy: the best of a grid, then of a finer one around it."""

    def loss(value: float) -> float:
        return float(nn.functional.nll_loss(with_temperature(head, value, features), labels))

    best = min((step / 4 for step in range(-16, 17)), key=loss)
    return min((best + step / 32 for step in range(-8, 9)), key=loss)


def calibration(head: nn.Module, value: float, features: Tensor, labels: Tensor) -> Row:
    """How the confidence fits the accuracy at one temperature, and whether the maps still add up."""
    logits = with_temperature(head, value, features)
    probabilities, predicted = logits.exp(), logits.argmax(dim=1)
    with torch.no_grad():
        maps = torch.cat([head.maps(part, kind="cape").sum(dim=(2, 3)) for part in features.split(50)])
    return {
        "accuracy": float((predicted == labels).double().mean()),
        "confidence": float(probabilities.max(dim=1).values.double().mean()),
        "calibration_error": calibration_error(probabilities, labels),
        "loss": float(nn.functional.nll_loss(logits, labels)),
        "completeness_error": float((maps - probabilities).abs().max()),
    }


def chain_rows(name: str, study: Study, seed: int, threads: int) -> list[Row]:
    torch.set_num_threads(threads)
    return list(Chain(name, study, seed).rows())


def keep(found: list[Row]) -> None:
    """Write the rows of a chain in place of its earlier ones."""
    key = (found[0]["study"], found[0]["seed"])
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    rows = [row for row in rows if (row["study"], row["seed"]) != key] + found
    write(sorted(rows, key=lambda row: (row["study"], row["seed"])), ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the larger variant, for a GPU")
    parser.add_argument("--study", nargs="*", help=f"some of {', '.join([*SMALL, *LARGE])}; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="chains side by side; 1 on a GPU")
    args = parser.parse_args()
    studies = LARGE if args.large else SMALL
    for name in args.study or ():
        if name not in studies:
            parser.error(f"unknown study {name!r}: expected some of {', '.join(studies)}")
    chains = [(name, studies[name], seed) for seed in args.seeds for name in args.study or studies]
    processes = 1 if args.large else min(args.processes, len(chains))
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {pool.submit(chain_rows, *chain, threads): chain for chain in chains}
        for job in as_completed(jobs):
            keep(job.result())
            name, _, seed = jobs[job]
            print(f"finished: {name}, seed {seed}", flush=True)


if __name__ == "__main__":
    main()
