"""Measure an epoch of post-fitting with features that are computed anew, and with cached features.

python -m benchmarks.speed.training            # rows go to benchmarks/results/training.jsonl
python -m benchmarks.speed.training --quick    # a smoke test: a small network, nothing written

The two epochs take turns, and the ratio is computed for each pair. Weights are random and images are
generated, as the time does not depend on them.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm

from softcam_hub.arguments import ArgumentParser
from softcam_hub.data.splits import load_splits
from softcam_hub.training import Config, make_config
from softcam_hub.training.loop import Training
from softcam_hub.training.model import make_model
from softcam_hub.training.run import make_accelerator, prepare_training

from ..timing import environment, spread, write_rows

ROWS = Path(__file__).parents[1] / "results" / "training.jsonl"


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


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure two pairs of a small network, and write nothing")
    quick = parser.parse_args().quick
    model, size, images, pairs = ("test_resnet", 64, 32, 2) if quick else ("resnet50", 224, 128, 5)
    with tempfile.TemporaryDirectory() as folder:
        vanilla = timm.create_model(model, num_classes=4)
        source = Path(folder) / "vanilla"
        timm.models.save_for_hf(vanilla, source, safe_serialization=True)
        settings = {"init": str(source), "mode": "post-fit", "augment": False, "image_size": size, "data_size": size}
        counts = {"train_count": images, "eval_count": 4, "batch_size": 32 if images > 32 else 16, "epochs": 100}
        config = make_config(model=f"cape_{model}", **settings, **counts)
        uncached = prepared(replace(config, run=replace(config.run, cache_features=False)), Path(folder) / "a")
        cached = prepared(config, Path(folder) / "b")
        epoch(uncached), epoch(cached)
        times = [(epoch(uncached), epoch(cached)) for _ in range(pairs)]
    row: dict[str, Any] = {
        "model": f"cape_{model}",
        "image_size": size,
        "images": images,
        "classes": 4,
        "pairs": pairs,
        "uncached_seconds": statistics.median(a for a, _ in times),
        "cached_seconds": statistics.median(b for _, b in times),
        **spread("ratio", [a / b for a, b in times]),
        **environment(),
    }
    print(json.dumps(row))
    if not quick:
        write_rows([row], ROWS)


if __name__ == "__main__":
    main()
