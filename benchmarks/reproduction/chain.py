"""Run a study with one seed: train its runs one after another, and measure predictions and maps."""

import json
import math
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from softcam_hub.data.splits import Splits, load_splits
from softcam_hub.evaluation import benchmark
from softcam_hub.evaluation.accuracy import measure_vanilla
from softcam_hub.loading import load_classifier
from softcam_hub.models.anatomy import examine
from softcam_hub.training import Config, parse, run
from softcam_hub.training.model import make_model
from softcam_hub.training.parsing import read_recipe

from ..timing import Row, environment, read_rows
from ..values import values_by_explainer
from .findings import NOT_ALIGNED
from .studies import CAPE, Study
from .temperature import calibrations, vanilla_calibrations

RUNS = Path("runs") / "reproduction"
MEASURES = "table localisation sensitivity gini evidence"
DATA = ("data", "train_count", "eval_count", "data_size", "data_seed")
"""Settings of the data, which the benchmarks share with the runs."""

KEPT = ("explainer", "explains", "images", "annotated", "evidence_precision_images")
"""Columns of a benchmark's row that are kept where they exist, besides its numbers and curves."""


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
        settings = self.settings(recipe) | ({} if l1 is None else {"l1": l1})
        flags = [f"--{name}={value}" for name, value in settings.items()]
        resume = ["--resume"] if (output / "settings.yaml").exists() else []
        return parse([f"--recipe=reproduction/{recipe}", f"--output={output}", *flags, *resume])

    def settings(self, recipe: str) -> dict[str, Any]:
        """Return the settings by which a run differs from its recipe."""
        settings = {**self.study.settings, "data": self.study.data, "seed": self.seed, "data_seed": self.seed}
        settings["channels_last"] = True  # a third less time on CPUs, too
        settings["model"] = read_recipe(f"reproduction/{recipe}")["model"].replace("test_resnet", self.study.backbone)
        if recipe == "softcam-sparse" and self.study.penalty is not None:
            settings["l1"] = self.study.penalty
        if recipe.startswith("cape-pf"):  # the head of the vanilla classifier, with the learning rate of the recipe
            settings |= {"init": self.vanilla, "pretrained": False}
            settings.pop("lr", None)
        elif recipe != "vanilla" and self.starts_as_vanilla:
            settings |= {"init": self.vanilla if self.study.fine_tuned else self.start, "pretrained": False}
        return settings

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
        self.save_start()
        runs = [(recipe, None) for recipe in ("vanilla", *self.study.runs)]
        for recipe, l1 in [*runs, *(("softcam-sparse", l1) for l1 in self.study.sweep)]:
            config = self.config(recipe, l1)
            common = {"run": self._output(recipe, l1).name, "l1": config.model.l1, "epochs": config.optimization.epochs}
            yield "training", {**common, "images": len(self.splits.train), **run(config)}
        yield from (("variant", row) for row in self._variants())
        yield from self.explanations()
        bootstrapped = [name for name in self.study.runs if name in CAPE]
        for run_name in ["vanilla"] * bool(bootstrapped) + bootstrapped:
            yield from (("calibration", {"run": run_name, **row}) for row in self._calibrations(run_name))

    def save_start(self) -> None:
        """Save the vanilla classifier from which all runs start."""
        make_model(self.config("vanilla"), self.splits).save_pretrained(self.start)

    def train_vanilla(self) -> Path:
        """Return the folder of the trained vanilla classifier; train it now if it does not exist."""
        if not (self.folder / "vanilla" / "metrics.json").exists():
            run(self.config("vanilla"))
        return self.vanilla

    def _variants(self) -> list[Row]:
        """Measure the accuracy of the vanilla classifier, and of CAPE with its weights, naive and off the shelf."""
        compared = any(run in CAPE for run in self.study.runs)
        if not compared or not load_classifier(self.folder / self.study.runs[0] / "model").model.exact:
            return []
        return measure_vanilla(load_classifier(self.vanilla), self.splits.test, self.study.data, 50, self.device)

    def explanations(self) -> Iterator[tuple[str, Row]]:
        """Measure post-hoc maps of the vanilla classifier, and the maps of each run; return kinds and rows."""
        if not self.study.fine_tuned:
            yield from self.explain("vanilla")
        for recipe in self.study.runs:
            yield from self.explain(recipe, native(recipe))
        for l1 in self.study.sweep:
            yield from self.explain(self._output("", l1).name, "softcam", "table localisation gini evidence")

    def explain(
        self, run_name: str, explainers: str | None = None, measures: str = MEASURES
    ) -> Iterator[tuple[str, Row]]:
        """Measure maps where their cells look, with the values of every image, and drawn as squares beside it."""
        rows, lines = self.benchmark(run_name, run_name, explainers, measures, self.study.limit)
        yield from (("explanation", {"run": run_name, **kept(row)}) for row in rows)
        yield from (("values", {"run": run_name, **row}) for row in values_by_explainer(lines))
        moved = " ".join(row["explainer"] for row in rows if row["map_offset"])
        if moved:
            folder = f"{run_name}, not aligned"
            rows, _ = self.benchmark(run_name, folder, moved, "localisation", self.study.limit, aligned=False)
            yield from ((NOT_ALIGNED, {"run": run_name, **kept(row)}) for row in rows)

    def benchmark(
        self,
        run_name: str,
        folder: str,
        explainers: str | None,
        measures: str,
        limit: int | None,
        aligned: bool = True,
    ) -> tuple[list[Row], list[Row]]:
        """Explain test images, and return a row for every explainer, and a line for every explainer and image.

        Args:
            run_name: Run whose model is explained.
            folder: Name of the folder of the results.
            explainers: Names of explainers; all that fit by default.
            measures: Names of groups of measures.
            limit: Number of images, or None for all.
            aligned: Draw maps where their cells look.
        """
        data = {key: getattr(self.config("vanilla").data, key) for key in DATA}
        options = {"explainers": explainers, "measures": measures, "limit": limit, "seed": self.seed}
        options |= {"aligned": aligned, "per_image": True, "batch_size": 25, "shard_size": 100}
        output = self.folder / "benchmark" / folder
        rows = benchmark(self.folder / run_name / "model", output, **options, **data)
        return rows, read_rows(output / "values.jsonl")

    def _calibrations(self, recipe: str) -> list[Row]:
        """Measure a CAPE run, or the vanilla classifier, at several temperatures."""
        classifier = load_classifier(self.folder / recipe / "model")
        classifier.model.to(self.device)
        if recipe == "vanilla":
            return vanilla_calibrations(classifier, self.splits)
        settings = self.config(recipe).model
        return calibrations(classifier, self.splits, None if settings.mode == "direct" else settings.temperature)

    def _add_seconds(self, now: float) -> float:
        """Add the seconds of this call to those of earlier ones that were interrupted."""
        file = self.folder / "seconds.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        total = now + (json.loads(file.read_text()) if file.exists() else 0.0)
        file.write_text(json.dumps(total))
        return total


def native(recipe: str) -> str:
    """Return the names of the maps of a run's own model."""
    return "softcam" if recipe.startswith("softcam") else "cape mu-cape"


def kept(row: Row) -> Row:
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
