"""Run a study on photographs of steel, with networks that start from ImageNet's weights.

- All runs start from one vanilla classifier: ImageNet's backbone, and a classifier that starts as the package's heads
  do. timm's own start of an EfficientNet's classifier is twenty times larger, and takes more epochs to be unlearnt.
- Localisation is measured on all test images. In rows of explanations it is that of the classes with small boxes; the
  page tells that of every class from the values of every image. Everything else is measured on the first images, in
  which the classes take turns.
- Score-CAM runs the network once per channel, and integrated gradients 50 times: they explain fewer images, and are
  compared with SoftCAM on the same images.
- Patches are occluded for SoftCAM's maps and for those that they are compared with. That takes ten times as long as all
  other scores.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import timm

from softcam_hub.evaluation.results import make_rows
from softcam_hub.explainers.methods import CLASS_ACTIVATION, PIXELS, UNINFORMED
from softcam_hub.models.conversion import to_vanilla
from softcam_hub.training import parse
from softcam_hub.training.model import make_model
from softcam_hub.training.objective import VanillaForTraining

from ..imagenet_weights import imagenet_folder
from ..manifests import read_manifest, write_manifest
from ..timing import Row
from ..values import values_by_explainer
from .chain import MEASURES, RUNS, Chain, kept, native
from .findings import ALL_LOCATED, LOCALISED, NOT_ALIGNED, SUBSET
from .studies import Study

SUBSETS = {"integrated-gradients": 120, "score-cam": 24}
"""Post-hoc methods that explain few images -> number of images."""

LOCALISATION = "localisation"
"""Group of measures that need no forward pass."""

WITHOUT_OCCLUSION = "table localisation gini evidence"
"""Groups of measures that need a few forward passes for each image."""


class SteelChain(Chain):
    """A study on steel with one seed.

    Args:
        name: Name of the study.
        study: Backbone and runs.
        seed: Seed of the classifier's first weights and of batches.
        photographs: Folder of the photographs, with manifest.csv.
        runs: Folder of all runs.
        places_only: Locate maps, and leave out the scores for which the network has to run again.
    """

    def __init__(
        self, name: str, study: Study, seed: int, photographs: Path, runs: Path = RUNS, places_only: bool = False
    ) -> None:
        super().__init__(name, study, seed, runs)
        self.photographs, self.places_only = photographs, places_only

    def rows(self) -> list[Row]:
        """Train and measure, and name the data without the path of this machine."""
        return [{**row, "data": self.study.data} if "data" in row else row for row in super().rows()]

    @cached_property
    def manifest(self) -> Path:
        """Manifest in which the classes of the test images take turns, so that the first images have all classes."""
        file = self.folder / "manifest.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_in_turns(self.photographs, file)
        return file

    def settings(self, recipe: str) -> dict[str, Any]:
        """Return the settings by which a run differs from its recipe."""
        settings = super().settings(recipe) | {"data": self.manifest}
        for name in ("data_seed", "train_count", "eval_count", "hold_out"):
            settings.pop(name, None)
        return {"init": self.start, **settings}

    def save_start(self) -> None:
        """Save ImageNet's backbone with a classifier that starts as the package's heads do."""
        if (self.start / "config.json").exists():
            return
        settings = self.settings("softcam") | {"init": imagenet_folder(self.study.backbone)}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        config = parse(["--recipe=reproduction/softcam", f"--output={self.folder / 'softcam'}", *flags])
        model = make_model(config, self.splits)
        model.save_pretrained(self.folder / "start as SoftCAM")
        timm_model = timm.create_model(f"local-dir:{self.folder / 'start as SoftCAM'}", pretrained=True)
        VanillaForTraining(to_vanilla(timm_model), False, self.splits.classes).save_pretrained(self.start)

    def explanations(self) -> Iterator[tuple[str, Row]]:
        """Measure maps; a study of the resolution only locates the vanilla classifier's CAM."""
        if self.study.resolution:
            yield from self.locate("vanilla", "cam")
            return
        post_hoc = [name for name in (*CLASS_ACTIVATION, *PIXELS) if name not in SUBSETS]
        yield from self.explain("vanilla", " ".join([*post_hoc, *UNINFORMED]))
        for name, limit in () if self.places_only else SUBSETS.items():
            _, lines = self.benchmark("vanilla", name, name, WITHOUT_OCCLUSION, limit)
            yield from self.on_few_images("vanilla", name, lines)
        for run_name in self.study.runs:
            measures = MEASURES if run_name.startswith("softcam") else WITHOUT_OCCLUSION
            yield from self.explain(run_name, native(run_name), measures)

    def explain(
        self, run_name: str, explainers: str | None = None, measures: str = MEASURES
    ) -> Iterator[tuple[str, Row]]:
        """Measure maps of a run on the first images, and locate them on all images."""
        if self.places_only:
            for kind, row in self.locate(run_name, explainers):
                yield kind, row
                if kind == LOCALISED and row["class"] == ALL_LOCATED:
                    yield "explanation", {name: value for name, value in row.items() if name != "class"}
            return
        rows, lines = self.benchmark(run_name, run_name, explainers, measures, self.study.limit)
        places: dict[str, Row] = {}
        for kind, row in self.locate(run_name, explainers):
            if kind == LOCALISED and row["class"] == ALL_LOCATED:
                places[row["explainer"]] = {name: value for name, value in row.items() if name != "class"}
            yield kind, row
        for row in rows:
            place = places[row["explainer"]]
            yield "explanation", {"run": run_name, **kept(row), **place, "images": row["images"]}
        yield from (("values", {"run": run_name, **row}) for row in values_by_explainer(lines))
        for name, limit in SUBSETS.items():
            if run_name.startswith("softcam"):
                yield from self.on_few_images(run_name, name, [line for line in lines if line["index"] < limit])

    def on_few_images(self, run_name: str, of: str, lines: list[Row]) -> Iterator[tuple[str, Row]]:
        """Average scores over the images that a slow method explains, and places over those that count.

        Args:
            run_name: Run whose maps were measured.
            of: Name of the slow method.
            lines: A line for every explainer and image.
        """
        for row in make_rows(lines, {}, defaultdict(dict)):
            place = self.located(lines)[row["explainer"]]
            yield SUBSET, {"run": run_name, "of": of, **kept(row), **place, "images": row["images"]}
        yield from (("values", {"run": run_name, "of": of, **row}) for row in values_by_explainer(lines))

    def locate(self, run_name: str, explainers: str | None) -> Iterator[tuple[str, Row]]:
        """Locate maps of a run in all test images, where their cells look and drawn as squares."""
        rows, lines = self.benchmark(run_name, f"{run_name}, all images", explainers, LOCALISATION, None)
        for name in (ALL_LOCATED, *self.splits.classes):
            found = self.located(lines, None if name == ALL_LOCATED else (name,))
            yield from ((LOCALISED, {"run": run_name, "class": name, **row}) for row in found.values())
        yield from (("values", {"run": run_name, "of": "all images", **row}) for row in values_by_explainer(lines))
        moved = " ".join(row["explainer"] for row in rows if row["map_offset"])
        if moved:
            folder = f"{run_name}, all images, not aligned"
            _, squares = self.benchmark(run_name, folder, moved, LOCALISATION, None, aligned=False)
            yield from ((NOT_ALIGNED, {"run": run_name, **row}) for row in self.located(squares).values())

    def located(self, lines: list[Row], classes: tuple[str, ...] | None = None) -> dict[str, Row]:
        """Average the localisation over the images of some classes, by explainer; of those that count by default."""
        counted = {self.splits.classes.index(name) for name in classes or self.study.located}
        some = [line for line in lines if line["label"] in counted]
        rows = make_rows(some, {}, defaultdict(dict))
        return {
            row["explainer"]: kept({name: value for name, value in row.items() if name != "accuracy"}) for row in rows
        }


def write_in_turns(photographs: Path, target: Path) -> None:
    """Write a manifest with full paths, in which the classes of every split take turns.

    Args:
        photographs: Folder of the photographs, with manifest.csv.
        target: File to write.
    """
    source = photographs / "manifest.csv"
    if not source.is_file():
        raise FileNotFoundError(missing_manifest(photographs))
    by_class: dict[str, list[Row]] = {}
    for row in read_manifest(source):
        by_class.setdefault(row["label"], []).append(row)
    turns = [row for turn in zip_longest(*(by_class[name] for name in sorted(by_class))) for row in turn if row]
    write_manifest(turns, target)


def missing_manifest(photographs: Path) -> str:
    """Return what to tell a user whose folder has no manifest."""
    return (
        f"there is no {photographs / 'manifest.csv'}: obtain the photographs of NEU-DET with their boxes "
        "(docs/first_data_set.md says where), and name their folder with --photographs, or PHOTOGRAPHS= for make"
    )
