"""A whole benchmark: models and data, shards of images, and the folder that is left.

output/
  rows.jsonl      one row per explainer: means in percent, curves over k, settings and versions
  table1.md       the CAPE paper's Table 1, with Borda, and the localisation scores
  curves.png      localisation precision and sensitivity over the k highest patches
  values.jsonl    with per_image: the values of every image
  settings.json   what was asked; a benchmark that goes on must be asked the same
  shards/         values of every image as they come; what is there is not computed again
"""

import json
import logging
import zlib
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..data.config import DataConfig
from ..data.lesions import VARIANTS
from ..data.samples import Samples
from ..data.splits import Splits, load_splits
from ..files import write_text
from ..loading import load_classifier
from ..output_folder import OutputFolder, Use
from . import report
from .config import GRID, LOCALISATION, SENSITIVITY, BenchmarkConfig, make_settings
from .folder import CURVES, ROWS, TABLE1, VALUES, benchmark_folder, start
from .models import (
    Explained,
    Pair,
    divide,
    fingerprint,
    lent,
    pair_up,
    several_labels,
)
from .results import Row, make_rows, versions
from .shards import Shards, count_of, make_dataset

logger = logging.getLogger(__name__)

ENOUGH = 64
"""Generated training images, so that every class is among them."""

TRIED = 4
"""Images on which an explainer is tried before it is taken: some refuse images rather than models."""

FREE_TO_CHANGE = ("output", "overwrite", "per_image")
"""Settings that a benchmark that goes on may have otherwise."""

NOT_IN_ROWS = ("pairs", "weights", "images")
"""What a benchmark that goes on is asked beside the facts of a row."""

NEEDS = {
    LOCALISATION: ("activation_precision", "an annotation"),
    SENSITIVITY: ("topk_sensitivity", "an annotation"),
    GRID: (GRID, "a place in a mosaic of four classes"),
}
"""Measure that some images have no value of -> its name in a row, and what an image needs for it."""


def benchmark(
    model: str | Path | nn.Module, output: str | Path, twin: str | Path | nn.Module | None = None, **settings: Any
) -> list[Row]:
    """Measure explanations on a data set; write rows, table and curves to `output`, and return the rows.

        benchmark("runs/x/model", "results", twin="runs/x/vanilla", data="lesions", eval_count=64)

    Args:
        model: one of ours (native maps), or a black box: a model, a folder, a timm name or a Hub id.
        output: folder for the results.
        twin: the black box that post-hoc maps explain, in the same forms; a SoftCAM model with an exact head has one.
        settings: fields of `BenchmarkConfig` and of `DataConfig`.
    """
    config, data = make_settings(output=str(output), **settings)
    state = Accelerator()  # PartialState alone does not see ACCELERATE_USE_CPU
    folder = benchmark_folder(output)
    with folder.locked(_use(config)) if state.is_main_process else nullcontext():
        found = _measure(_load(model, twin), folder, config, data, state)
        state.wait_for_everyone()
    return found


def _use(config: BenchmarkConfig) -> Use:
    return "replace" if config.overwrite else "continue"


def _measure(
    loaded: tuple[Pair, dict[str, str | None]],
    folder: OutputFolder,
    config: BenchmarkConfig,
    data: DataConfig,
    state: Accelerator,
) -> list[Row]:
    """Measure the explanations of loaded models; all processes do it together."""
    pair, names = loaded
    parts, left_out = divide(config.chosen_explainers, pair)
    data = needed(data, config.split)
    with state.main_process_first():  # generated images are drawn once
        splits = load_splits(data)
    samples = _chosen_samples(splits, data, config)
    with ExitStack() as stack:
        for one in (pair.model, pair.twin):
            if one is not None:
                stack.enter_context(lent(one.model, state.device))
        explained, refused = _choose_explainers(config, pair, parts, splits, samples)
        asked = _asked(config, data, names, explained, samples) | versions(state.device)
        if state.is_main_process:
            start(folder, asked, _use(config))  # everything that can be refused has been checked
            _tell_left_out(left_out | refused)
        state.wait_for_everyone()
        shards = Shards(folder.path, samples, explained, config)
        shards.work(state)
    state.wait_for_everyone()
    found = make_rows(shards.lines(), {name: value for name, value in asked.items() if name not in NOT_IN_ROWS})
    if state.is_main_process:
        _warn_of_missing(found, shards)
        _leave(folder.path, found, shards, config)
    return found


def _tell_left_out(left_out: dict[str, str]) -> None:
    """Log the explainers that do not fit the models, those with the same reason together."""
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name, why in left_out.items() if why == reason)
        logger.warning("left out: %s (%s)", names, reason)


def _load(model: Any, twin: Any) -> tuple[Pair, dict[str, str | None]]:
    """The models, and what to call them."""
    loaded = load_classifier(model)
    loaded_twin = None if twin is None else load_classifier(twin)
    names = {"model": loaded.name, "twin": None if loaded_twin is None else loaded_twin.name}
    return pair_up(loaded, loaded_twin), names


def needed(data: DataConfig, split: str) -> DataConfig:
    """The same data without the generated images that nobody will look at: drawing them takes minutes."""
    if data.data not in VARIANTS or split != "test" or data.folds:
        return data
    return replace(data, train_count=min(data.train_count, ENOUGH), validation_split="", hold_out=0.0)


def samples_of_split(splits: Splits, data: DataConfig, split: str) -> Samples:
    """The images of a split by name."""
    samples = getattr(splits, split)
    if not isinstance(samples, Samples):
        raise ValueError(f"{data.data!r} has no {split} split to explain: choose another one with split")
    return samples


def _chosen_samples(splits: Splits, data: DataConfig, config: BenchmarkConfig) -> Samples:
    """The images to explain, with classes and labels that the measures can take."""
    samples = samples_of_split(splits, data, config.split)
    if GRID in config.chosen_measures(samples.has_masks) and (splits.multi_label or len(splits.classes) < 4):
        raise ValueError(f"{GRID} needs mosaics of four images of different classes: leave it out of measures")
    return samples


def _choose_explainers(
    config: BenchmarkConfig, pair: Pair, parts: dict[str, list[str]], splits: Splits, samples: Samples
) -> tuple[list[Explained], dict[str, str]]:
    """Models with the explainers that fit them, and those that do not, with the reason."""
    left_out: dict[str, str] = {}
    named = config.chosen_explainers is not None and "all" not in config.chosen_explainers
    found = []
    for role, model in (("model", pair.model), ("twin", pair.twin)):
        if not parts[role]:
            continue
        model.check_classes(splits.classes, f"the {role}")
        several = several_labels(pair, role, splits.multi_label)
        one = Explained(role, model, parts[role], several, config.seed, config.batch_size)
        images = make_dataset(model.preprocessing, samples)
        some = torch.stack([images[index]["pixel_values"] for index in range(min(TRIED, len(samples)))])
        if config.patch is not None and config.patch > (side := min(some.shape[-2:])):
            raise ValueError(f"patch must be at most {side}, the side of the {role}'s images, got {config.patch}")
        with torch.enable_grad():
            left_out |= one.drop_refused(some.to(next(model.model.parameters()).device), strict=named)
        if one.names:
            found.append(one)
    if not found:
        raise ValueError(f"no explainer is left: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    return found, left_out


def _asked(
    config: BenchmarkConfig, data: DataConfig, names: dict[str, Any], explained: list[Explained], samples: Samples
) -> dict[str, Any]:
    """All that the values follow from, beside the versions."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    pairs = {one.role: list(one.names) for one in explained}
    weights = {one.role: fingerprint(one.classifier) for one in explained}
    hashes = {"hash": samples.fingerprint(with_masks=True), "labels": zlib.crc32(samples.labels.tobytes())}
    images = {"count": count_of(samples, config), **hashes}
    return {**names, **asdict(data), **settings, "pairs": pairs, "weights": weights, "images": images}


def _warn_of_missing(rows: list[Row], shards: Shards) -> None:
    """Say why a measure that was asked for is in no row."""
    for measure, (name, need) in NEEDS.items():
        if measure in shards.asked and not any(name in row for row in rows):
            logger.warning("no value of %s: none of the %d images has %s", measure, shards.count, need)


def _leave(folder: Path, rows: list[Row], shards: Shards, config: BenchmarkConfig) -> None:
    """Write what people and other programs read."""
    write_text(folder / ROWS, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(folder / TABLE1, report.table1(rows))
    report.draw_curves(rows, folder / CURVES)
    if config.per_image:
        write_text(folder / VALUES, "".join(json.dumps(line) + "\n" for line in shards.lines()))
