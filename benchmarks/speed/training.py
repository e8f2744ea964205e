"""Measure an epoch of post-fitting with features that are computed anew, and with cached features.

python -m benchmarks.speed.training                          # rows: results/training.jsonl; ten minutes of two cores
python -m benchmarks.speed.training --photographs FOLDER     # EfficientNet-Lite0 and NEU-DET; a quarter of an hour
python -m benchmarks.speed.training --quick                  # a smoke test: a small network, nothing written

- The two epochs take turns, and the ratio is computed for each pair.
- Memory is the rise of resident memory while a run is prepared and trained for an epoch, in a process of its own.
- Beside them stands `softcam_hub.post_fit`, the whole of it: features, all updates, and the measurement of the result.
- Without photographs, images are generated and weights random, as times do not depend on them.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

import softcam_hub
from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.samples import Samples
from softcam_hub.data.splits import load_splits
from softcam_hub.memory import keep_freed_memory
from softcam_hub.training import Config, make_config
from softcam_hub.training.loop import Training
from softcam_hub.training.model import make_model
from softcam_hub.training.run import make_accelerator, prepare_training

from ..imagenet_weights import imagenet_folder
from ..timing import (
    Row,
    add_threads,
    environment,
    in_turn,
    peak_in_fresh_process,
    prepare,
    replace_rows,
    rise_in_mib,
    rounded,
    spread,
)

ROWS = Path(__file__).parents[1] / "results" / "training.jsonl"
KEY = ("model", "images")


@dataclass(frozen=True)
class Case:
    """What is post-fitted.

    Args:
        architecture: timm name of the vanilla classifier.
        source: Where its backbone's weights come from, for timm; None for random weights.
        size: Side of the images in pixels.
        classes: Number of classes.
        pairs: Number of measured pairs.
        settings: Further settings of the run.
    """

    architecture: str
    size: int
    classes: int
    pairs: int
    settings: dict[str, Any]
    source: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)

    def save_vanilla(self, folder: Path) -> nn.Module:
        """Make the vanilla classifier, save it as timm does, and return it."""
        name = self.source or self.architecture
        made = timm.create_model(name, pretrained=bool(self.source), num_classes=self.classes, **self.model_args)
        timm.models.save_for_hf(made, folder, model_args=self.model_args, safe_serialization=True)
        return made

    def config(self, vanilla: Path, cached: bool) -> Config:
        """Return the settings of a run that post-fits CAPE to the vanilla classifier."""
        common = {"init": str(vanilla), "mode": "post-fit", "augment": False, "image_size": self.size, "epochs": 100}
        given = " ".join(f"{name}={value}" for name, value in self.model_args.items())
        made = make_config(model=f"cape_{self.architecture}", model_args=given, **common, **self.settings)
        return replace(made, run=replace(made.run, cache_features=cached))


QUICK = Case("test_resnet", 64, 4, 2, {"data_size": 64, "train_count": 32, "eval_count": 4, "batch_size": 16})
GENERATED = Case("resnet50", 224, 4, 5, {"data_size": 224, "train_count": 128, "eval_count": 4, "batch_size": 32})


def steel(manifest: Path) -> Case:
    """NEU-DET, with ImageNet's weights and the maps of the reproduction."""
    settings = {"data": str(manifest), "batch_size": 32}
    source, model_args = f"local-dir:{imagenet_folder()}", {"output_stride": 16}
    return Case("tf_efficientnet_lite0", 224, 6, 3, settings, source, model_args)


def prepared(config: Config, output: Path) -> Training:
    """Prepare a run for its first update, and compute the features if they are cached."""
    config = replace(config, run=replace(config.run, output=str(output)))
    splits = load_splits(config.data)
    return prepare_training(config, make_accelerator(config, output), splits, make_model(config, splits))


def epoch(training: Training) -> float:
    """Train for one epoch, and return the seconds."""
    began = time.perf_counter()
    training._train_epoch()
    training.epoch += 1
    return time.perf_counter() - began


def peak_mib(config: Config, output: Path) -> float | None:
    """Return by how many MiB preparing a run and training it for an epoch raise memory."""
    keep_freed_memory()
    return rise_in_mib(lambda: epoch(prepared(config, output)))


def post_fit_seconds(vanilla: nn.Module, samples: Samples) -> float:
    """Return the seconds that `softcam_hub.post_fit` takes for some images."""
    model = softcam_hub.convert(vanilla.eval(), "cape")
    images = [samples.image(index) for index in range(len(samples))]
    began = time.perf_counter()
    softcam_hub.post_fit(model, images)
    return time.perf_counter() - began


def measure(case: Case, folder: Path) -> Row:
    """Measure a case in an empty folder."""
    vanilla = case.save_vanilla(folder / "vanilla")
    samples = load_splits(case.config(folder / "vanilla", False).data).train
    assert isinstance(samples, Samples)  # nothing is streamed here
    configs = {"uncached": case.config(folder / "vanilla", False), "cached": case.config(folder / "vanilla", True)}
    uncached = prepared(configs["uncached"], folder / "uncached")
    began = time.perf_counter()
    cached = prepared(configs["cached"], folder / "cached")
    preparation = time.perf_counter() - began
    epoch(uncached), epoch(cached)
    times = in_turn(lambda: epoch(uncached), lambda: epoch(cached), case.pairs)
    return {
        "model": f"cape_{case.architecture}",
        "data": "generated" if case.source is None else "neu-det",
        "image_size": case.size,
        "images": len(samples),
        "classes": case.classes,
        "pairs": case.pairs,
        "uncached_seconds": rounded(statistics.median(a for a, _ in times)),
        "cached_seconds": rounded(statistics.median(b for _, b in times)),
        **spread("ratio", [a / b for a, b in times]),
        "preparation_seconds": rounded(preparation),
        **{
            f"{name}_mib": peak_in_fresh_process(peak_mib, one, folder / f"{name} again")
            for name, one in configs.items()
        },
        "post_fit_seconds": rounded(post_fit_seconds(vanilla, samples)),
        **environment(),
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure two pairs of a small network, and write nothing")
    parser.add_argument("--photographs", type=Path, help="folder of NEU-DET, with manifest.csv, in place of images")
    add_threads(parser)
    args = parser.parse_args()
    prepare(args.threads)
    keep_freed_memory()
    case = steel(args.photographs / "manifest.csv") if args.photographs else QUICK if args.quick else GENERATED
    with tempfile.TemporaryDirectory() as folder:
        row = measure(case, Path(folder))
    print(json.dumps(row))
    if not args.quick:
        replace_rows([row], ROWS, KEY)


if __name__ == "__main__":
    main()
