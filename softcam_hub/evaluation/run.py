"""Run a whole benchmark: load models and data, measure shards of images, and write the folder of results.

output/
  rows.jsonl      one row per explainer: means in percent with their intervals, curves over k, settings and versions
  table1.md       the CAPE paper's Table 1, with Borda, the localisation scores, and intervals
  curves.png      localisation precision and sensitivity over the k highest patches
  localisation.md scores by size of the annotation, evidence on images with and without one, cells by their mass
  agreement.jsonl with the measure agreement: the rank correlations of the maps of all pairs of explainers
  agreement.png   the same as a picture
  values.jsonl    with per_image: the values of every image
  settings.json   everything that the values follow from; a continued benchmark must have the same settings
  shards/         the values of every image as they are computed; existing shards are not computed again
"""

import logging
import zlib
from contextlib import ExitStack
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
from ..explainers.methods import reads_features
from ..explanation_scores.thresholds import THRESHOLDS
from ..files import write_json_lines, write_text
from ..loading import load_classifier
from ..output_folder import OutputFolder, Use, in_main_process
from . import report
from .agreement import list_names, mean_agreement, see_the_same, write_agreement
from .alignment import align_classifiers
from .config import (
    AGREEMENT,
    BOXES,
    CAUSAL,
    EVIDENCE,
    GRID,
    IDSDS,
    LOCALISATION,
    PXAP,
    SENSITIVITY,
    BenchmarkConfig,
    make_settings,
)
from .deletion_training import warn_of_unseen_deletions
from .folder import CURVES, LOCALISATION_TABLES, ROWS, TABLE1, VALUES, benchmark_folder, claim_folder
from .lines import Line
from .localisation_report import localisation_tables
from .models import (
    MODEL,
    ROLES,
    VANILLA,
    ClassifierWithExplainers,
    ModelPair,
    assign_explainers,
    fingerprint,
    on_device,
    pair_models,
    resolve_multi_label,
)
from .results import Row, make_rows, values_of_explainers, versions
from .shards import Shards, count_images, make_dataset
from .tuning import add_tuned_iou, read_thresholds

logger = logging.getLogger(__name__)

ENOUGH = 64
"""Number of generated training images that contain every class."""

TRIAL_IMAGES = 4
"""Number of images on which every explainer is tried first: some refuse images rather than models."""

FREE_TO_CHANGE = ("output", "overwrite", "per_image", "thresholds_from")
"""Settings in which a continued benchmark may differ from the earlier one."""

NOT_IN_ROWS = ("pairs", "weights", "images", "alignment")
"""Settings that identify models and images, and are no part of a row. A row has the offset of its own maps instead."""

NEEDS = {
    LOCALISATION: ("activation_precision", "an annotation"),
    SENSITIVITY: ("topk_sensitivity", "an annotation"),
    PXAP: ("pxap", "an annotation"),
    BOXES: ("max_box_accuracy", "an annotation"),
    EVIDENCE: ("evidence_precision", "an annotation and a signed map (softcam, cam) with evidence above 1"),
    GRID: (GRID, "a place in a mosaic of four classes"),
    CAUSAL: ("causal_rank", "a part that speaks for its class"),
}
"""Measure -> its name in a row, and what an image must have to get a value."""


def benchmark(
    model: str | Path | nn.Module, output: str | Path, vanilla: str | Path | nn.Module | None = None, **settings: Any
) -> list[Row]:
    """Measure how good explanations are on a data set, and write the results into a folder.

        rows = softcam_hub.benchmark(
            "runs/x/model", "results", vanilla="runs/x/vanilla", data="lesions", explainers="cape grad-cam"
        )
        rows[0]["average_drop"]  # in percent

    There is one row for each explainer, with the mean of every measure over the images, in percent, its 95 %
    bootstrap interval over the images (`average_drop_interval`), and the settings and versions that it follows from.
    The maps that a model predicts with explain that model. Post-hoc methods such as Grad-CAM explain the vanilla
    classifier. The folder holds the rows (`rows.jsonl`), the CAPE paper's Table 1 (`table1.md`) and curves
    (`curves.png`). A benchmark that was interrupted goes on where it ended if it is called again with the same
    arguments.

    Args:
        model: Self-explaining model, whose own maps are measured, or vanilla classifier: a module, model
            folder, timm name or Hub id.
        output: Folder for the results.
        vanilla: Vanilla classifier that post-hoc maps explain, in the same forms. A SoftCAM model with an
            exact head is turned into its own.
        settings: Fields of `softcam_hub.evaluation.config.BenchmarkConfig`, such as `explainers`, `split`, `limit`,
            `batch_size` and `overwrite`, and of `softcam_hub.data.config.DataConfig`, such as `data`, which names the
            data set, and `image_column`.

    Returns:
        One dictionary for each explainer, as in `rows.jsonl`.
    """
    config, data = make_settings(output=str(output), **settings)
    state = Accelerator()  # PartialState alone ignores ACCELERATE_USE_CPU
    folder = benchmark_folder(output)
    with ExitStack() as stack:
        in_main_process(state, lambda: stack.enter_context(folder.locked(_use(config))))
        classifier = load_classifier(model).at_size(config.image_size)
        other = None if vanilla is None else load_classifier(vanilla).at_size(config.image_size)
        names = {MODEL: classifier.name, VANILLA: None if other is None else other.name}
        rows = _measure(pair_models(classifier, other), names, folder, config, data, state)
        state.wait_for_everyone()
    return rows


def _use(config: BenchmarkConfig) -> Use:
    return "replace" if config.overwrite else "continue"


def _measure(
    pair: ModelPair,
    names: dict[str, str | None],
    folder: OutputFolder,
    config: BenchmarkConfig,
    data: DataConfig,
    state: Accelerator,
) -> list[Row]:
    """Measure the explanations of loaded models, in all processes together."""
    assigned, left_out = assign_explainers(config.chosen_explainers, pair)
    data = without_unused_images(data, config.split)
    with state.main_process_first():  # generated images are drawn once
        splits = load_splits(data)
    config = replace(config, split=choose_split(splits, data, config.split))
    data = replace(data, hold_out=splits.held_out)
    samples = _choose_samples(splits, config)
    with ExitStack() as stack:
        for classifier in (pair.model, pair.vanilla):
            if classifier is not None:
                stack.enter_context(on_device(classifier.model, state.device))
        # try the explainers, and claim the folder only when everything that can be refused has been checked
        classifiers, impossible = _make_classifiers(config, pair, assigned, splits, samples)
        moving = [one.role for one in classifiers if config.aligned and any(map(reads_features, one.names))]
        align_classifiers(pair, moving, samples, state)
        settings = _describe_run(config, data, names, classifiers, samples) | versions(state.device)
        thresholds = read_thresholds(Path(config.thresholds_from), settings) if config.thresholds_from else {}
        in_main_process(state, lambda: claim_folder(folder, settings, _use(config)))
        shards = Shards(folder.path, samples, classifiers, config, data)
        if state.is_main_process:
            _log_left_out(left_out | impossible)
            _warn_of_unfit_models(shards.measures, classifiers, names)
        shards.compute(state)
    state.wait_for_everyone()
    lines = shards.read_lines()
    common = {name: value for name, value in settings.items() if name not in NOT_IN_ROWS}
    own: dict[tuple[str, str], Row] = {
        (name, one.role): {"map_offset": one.map_offset(name)} for one in classifiers for name in one.names
    }
    if thresholds:
        add_tuned_iou(lines, thresholds)
        common["thresholds_from"] = config.thresholds_from
        own = {key: columns | {"iou_threshold": THRESHOLDS[thresholds[key]]} for key, columns in own.items()}
    rows = make_rows(lines, common, own)
    if state.is_main_process:
        _warn_of_missing_values(rows, shards)
        _write_results(folder.path, rows, lines)
        if AGREEMENT in shards.measures:
            write_agreement(folder.path, mean_agreement(lines, classifiers, common), shards.count)
        if config.per_image or (folder.path / VALUES).exists():  # which may hold the IoU at earlier thresholds
            write_json_lines(folder.path / VALUES, lines)
    return rows


def _write_results(folder: Path, rows: list[Row], lines: list[Line]) -> None:
    """Write rows, tables and curves.

    Args:
        folder: Folder of the benchmark.
        rows: Rows of all explainers.
        lines: Values of all images and explainers.
    """
    write_json_lines(folder / ROWS, rows)
    write_text(folder / TABLE1, report.table1(rows, values_of_explainers(lines)))
    report.draw_curves(rows, folder / CURVES)
    if tables := localisation_tables(rows):
        write_text(folder / LOCALISATION_TABLES, tables)


def _log_left_out(left_out: dict[str, str]) -> None:
    """Log the explainers that do not fit the models, those with the same reason together."""
    for reason in dict.fromkeys(left_out.values()):
        names = ", ".join(name for name, why in left_out.items() if why == reason)
        logger.warning("left out: %s (%s)", names, reason)


def _warn_of_unfit_models(
    measures: tuple[str, ...], classifiers: list[ClassifierWithExplainers], names: dict[str, str | None]
) -> None:
    """Warn of models for which a chosen measure means less than it says."""
    if IDSDS in measures:
        warn_of_unseen_deletions(names)
    if AGREEMENT in measures and not see_the_same(classifiers):
        logger.warning(
            "the model and the vanilla classifier see images of another size or crop, so that agreement does not "
            "compare the maps of one with those of the other"
        )


def without_unused_images(data: DataConfig, split: str) -> DataConfig:
    """Return the data without generated images that no benchmark looks at, as drawing them takes minutes."""
    if data.data not in VARIANTS or split not in ("", "test") or data.folds or not data.test_split:
        return data
    return replace(data, train_count=min(data.train_count, ENOUGH), validation_split="", hold_out=0.0)


def choose_split(splits: Splits, data: DataConfig, split: str) -> str:
    """Return the split to measure on: the one that the user names, or the best one that was held out.

    Args:
        splits: Data that have been loaded.
        data: Description of the data, for messages.
        split: Name of a split, or "" for the test split or, without one, the validation split.
    """
    chosen = split or next(iter(splits.names), "test")
    existing = f"{data.data!r} has {' and '.join(splits.names) or 'no'} images"
    if chosen not in splits.names:
        raise ValueError(f"there is no {chosen} split: {existing}; choose one of them with split")
    if chosen == "train" and not split:
        raise ValueError(
            f"no image was held out: {existing}, from which a model may have learnt. Choose split='train' to measure "
            "on them nevertheless"
        )
    if chosen != "test" and not split:
        logger.warning("there is no test split: %s, and the %s images are measured", existing, chosen)
    return chosen


def _choose_samples(splits: Splits, config: BenchmarkConfig) -> Samples:
    """Return the images to explain, and refuse measures that these images do not allow."""
    samples = getattr(splits, config.split)
    if GRID in config.chosen_measures(samples.has_masks) and (splits.multi_label or len(splits.classes) < 4):
        raise ValueError(f"{GRID} needs mosaics of four images of different classes: leave it out of measures")
    return samples


def _make_classifiers(
    config: BenchmarkConfig, pair: ModelPair, assigned: dict[str, list[str]], splits: Splits, samples: Samples
) -> tuple[list[ClassifierWithExplainers], dict[str, str]]:
    """Join the classifiers with the explainers that fit them, and return the others with the reason."""
    left_out: dict[str, str] = {}
    named = config.chosen_explainers is not None and "all" not in config.chosen_explainers
    classifiers = []
    for role in ROLES:
        if not assigned[role]:
            continue
        loaded = getattr(pair, role)
        loaded.check_classes(splits.classes, f"the {role}")
        multi_label = resolve_multi_label(pair, role, splits.multi_label)
        images = make_dataset(loaded.preprocessing, samples)
        trial = torch.stack([images[index]["pixel_values"] for index in range(min(TRIAL_IMAGES, len(samples)))])
        side = min(trial.shape[-2:])
        if config.patch is not None and config.patch > side:
            raise ValueError(f"patch must be at most {side}, the side of the {role}'s images, got {config.patch}")
        options: dict[str, Any] = {"seed": config.seed, "batch": config.batch_size, "aligned": config.aligned}
        one = ClassifierWithExplainers(role, loaded, assigned[role], multi_label, **options)
        with torch.enable_grad():
            left_out |= one.drop_impossible(trial.to(one.device), strict=named)
        if one.names:
            classifiers.append(one)
    if not classifiers:
        raise ValueError(f"no explainer is left: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    if AGREEMENT in config.chosen_measures(samples.has_masks) and len(list_names(classifiers)) < 2:
        raise ValueError(f"{AGREEMENT} compares explainers, but there is only {list_names(classifiers)[0]}: name more")
    return classifiers, left_out


def _describe_run(
    config: BenchmarkConfig,
    data: DataConfig,
    names: dict[str, Any],
    classifiers: list[ClassifierWithExplainers],
    samples: Samples,
) -> dict[str, Any]:
    """Collect everything that the values follow from, except versions."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    pairs = {one.role: list(one.names) for one in classifiers}
    weights = {one.role: fingerprint(one.classifier) for one in classifiers}
    alignment = {one.role: one.alignment.as_dict() for one in classifiers if one.alignment is not None}
    hashes = {"hash": samples.fingerprint(with_masks=True), "labels": zlib.crc32(samples.labels.tobytes())}
    images = {"count": count_images(samples, config), **hashes}
    measured = {"pairs": pairs, "weights": weights, "images": images, "alignment": alignment}
    return {**names, **asdict(data), **settings, **measured}


def _warn_of_missing_values(rows: list[Row], shards: Shards) -> None:
    """Log the reason why a chosen measure is in no row."""
    for measure, (name, need) in NEEDS.items():
        if measure in shards.measures and not any(name in row for row in rows):
            logger.warning("no value of %s: none of the %d images has %s", measure, shards.count, need)
