"""The settings of a benchmark, checked before anything is loaded."""

import dataclasses
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

from ..arguments import check_names
from ..data.config import DataConfig
from ..data.fields import Count, WholeNumber, check_ranges, flag
from ..data.lesions import VARIANTS

TABLE, LOCALISATION, SENSITIVITY = "table", "localisation", "sensitivity"
EVIDENCE, SINGLE_DELETION, GRID = "evidence", "single_deletion", "grid_pointing"
IDSDS, AGREEMENT, CAUSAL = "idsds", "agreement", "causal"
PXAP, BOXES, CALIBRATION = "pxap", "boxes", "calibration"
DEFAULT_MEASURES = (TABLE, LOCALISATION, SENSITIVITY)
"""AD, IC, ADD, ADCC, mIoU and completeness; and, on annotated images, precision at the annotation and the
drop of the confidence with the top patches occluded. Evidence on images without an annotation is a part of
localisation."""

OF_REGIONS = (PXAP, BOXES, CALIBRATION)
"""Measures of localisation that keep a histogram or a curve for every image: pixel average precision, boxes around the
parts of a map (MaxBoxAccV2), and the share of annotated cells by their mass."""

OPTIONAL_MEASURES = (
    *("gini", EVIDENCE, "insertion", "deletion", "road", SINGLE_DELETION, IDSDS, "max_sensitivity", GRID, AGREEMENT),
    CAUSAL,
    *OF_REGIONS,
)
"""Measures that are in neither paper, most of which take longer; the SoftCAM authors' own precision, which suits
signed maps in units of the logit only; the agreement of explainers, which is no score; and what the removal of parts of
generated images changes."""

SPLITS = ("test", "validation", "train")

OF_ACCURACIES = ("output", "split", "limit", "batch_size")
"""Settings that a table of accuracies has, too."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measures, images and output of a benchmark; the help of each field describes it."""

    _argument_group_name: ClassVar[str] = "benchmark"

    output: str = flag("", "Folder for rows, tables and curves. An interrupted benchmark is continued there.")
    explainers: str = flag(
        "", "Names of explainers such as 'cape grad-cam random', or 'all' for all that fit the models. [the fast ones]"
    )
    measures: str = flag(
        "",
        f"Names of measures: {', '.join(DEFAULT_MEASURES)} (the default; without annotations {TABLE} alone), "
        f"{', '.join(OPTIONAL_MEASURES)}.",
    )
    split: str = flag(
        "",
        f"Split whose images are explained: {', '.join(SPLITS)}. [test or, without a test split, validation]",
    )
    limit: Count | None = flag(None, "Number of images to explain, from the first one on. [all]")
    image_size: Count | None = flag(
        None, "Side of the images that the networks see: larger ones have finer maps. [that of the model]"
    )
    batch_size: Count = flag(16, "Number of images per forward pass.")
    shard_size: Count = flag(32, "Number of images between two savings. Processes divide the work by shards.")
    patch: Count | None = flag(
        None, "Side of a patch in pixels (localisation, sensitivity). [a sixteenth of the image's side]"
    )
    thresholds_from: str = flag(
        "",
        "Folder of a benchmark of the same models on validation images, which chooses the threshold of iou_tuned for "
        "each explainer. [no iou_tuned]",
    )
    seed: WholeNumber = flag(0, "Seed of random maps and of noise.")
    aligned: bool = flag(
        True,
        "Draw the cells of maps where the network looks, as measured, wherever a map meets pixels. Other libraries and "
        "the papers draw them as squares that fill the image.",
    )
    per_image: bool = flag(False, "Keep the values of every image in values.jsonl.")
    overwrite: bool = flag(
        False, "Delete the files of an earlier benchmark in output, and the table of accuracies beside them."
    )

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("output is missing: name the folder for rows and tables, such as --output results")
        if self.split and self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        check_ranges(self)
        check_names(_words(self.measures), [*DEFAULT_MEASURES, *OPTIONAL_MEASURES], "measure")
        if self.chosen_explainers:
            from ..explainers.methods import list_explainers  # with torch, which the other checks need not wait for

            check_names(self.chosen_explainers, [*list_explainers(), "all"], "explainer")

    @property
    def chosen_explainers(self) -> tuple[str, ...] | None:
        """The explainers that the user names, in their order and each once; None for the default."""
        return _words(self.explainers) or None

    def chosen_measures(self, annotated: bool) -> tuple[str, ...]:
        """Return the measures for data with or without annotations."""
        chosen = _words(self.measures) or (DEFAULT_MEASURES if annotated else (TABLE,))
        if self.thresholds_from and LOCALISATION not in chosen:
            raise ValueError(f"thresholds_from chooses a threshold for {LOCALISATION}, which is not in measures")
        for name in (LOCALISATION, EVIDENCE, *OF_REGIONS):
            if name in chosen and not annotated:
                raise ValueError(f"{name} needs annotations, and these data have neither masks nor boxes")
        return chosen


def _words(text: str) -> tuple[str, ...]:
    """Split a text at commas and spaces, and keep each word once."""
    return tuple(dict.fromkeys(text.replace(",", " ").split()))


def make_settings(**settings: Any) -> tuple[BenchmarkConfig, DataConfig]:
    """Make both configurations from one set of settings, in which a list of names may be a list or a text."""
    groups = (BenchmarkConfig, DataConfig)
    known = {field.name: group for group in groups for field in dataclasses.fields(group)}
    check_names(tuple(settings), tuple(known), "setting")
    values: dict[type, dict[str, Any]] = {group: {} for group in groups}
    for name, value in settings.items():
        if isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        if isinstance(value, Integral) and not isinstance(value, bool):
            value = int(value)  # JSON knows no integers of numpy
        if isinstance(value, Path):
            value = str(value)
        if value is not None:
            values[known[name]][name] = value
    config, data = BenchmarkConfig(**values[BenchmarkConfig]), DataConfig(**values[DataConfig])
    if CAUSAL in _words(config.measures) and data.data not in VARIANTS:
        raise ValueError(
            f"{CAUSAL} removes parts of generated images, and {data.data!r} is no generated variant: choose one of "
            f"{', '.join(VARIANTS)} with data, or leave {CAUSAL} out of measures"
        )
    return config, data
