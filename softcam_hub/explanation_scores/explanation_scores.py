"""Provide the scores as an `evaluate` metric, which reduces arrays to one number per image.

- Every input is optional, and a score is the mean over the images that have all of its inputs. `evaluate` has
  no optional inputs, so that missing ones are NaN in its cache.
- Arrays are reduced when they are added, as the cache would make them slow and large. Scores that are no means over
  images need a histogram or a curve for each, of at most 202 numbers.
- `evaluate` copies only the files that this module imports, so that those files import no others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

from .boxes import annotation_boxes, box_hits, box_ious, max_box_accuracies
from .calibration import MASS_BORDERS, cell_masses, false_alarms, largest_evidence, mass_histograms, reliability
from .causal import causal_correlations, idle_parts, share_of_map, total_share
from .faithfulness import (
    adcc,
    average_drop,
    average_drop_in_deletion,
    coherency,
    complexity,
    increase_in_confidence,
    top_two_iou,
)
from .localization import (
    activation_precision,
    activation_sensitivity,
    check_masks,
    hit_rate,
    localization_precision,
    pointing_game,
)
from .maps import broken, check_same_size, require
from .thresholds import FINE_THRESHOLDS, THRESHOLDS, iou_otsu, pixel_average_precision, pixel_histograms

COLUMNS = (
    "confidence",
    "kept",
    "removed",
    "coherency",
    "complexity",
    "iou",
    "localization_precision",
    "activation_precision",
    "activation_sensitivity",
    "pointing_game",
    "hit_rate",
    "iou_otsu",
    "idle_share",
    "annotated",
    "causal_rank",
    "causal_linear",
    "largest_evidence",
)
"""Inputs with one number per image, in [0, 1] but for those of `RANGES`."""

RANGES = {"causal_rank": (-1.0, 1.0), "causal_linear": (-1.0, 1.0), "largest_evidence": (0.0, float("inf"))}
"""Input -> smallest and largest number."""

LISTS = {
    "pixel_histogram": 2 * (len(FINE_THRESHOLDS) + 1),
    "box_ious": len(THRESHOLDS),
    "mass_histogram": 3 * (len(MASS_BORDERS) + 1),
}
"""Columns with some numbers per image, which only arrays are reduced to -> how many."""

AT_IMAGE_SIZE = ("maps", "kept_maps", "second_maps", "masks", "regions")
AT_CELL_SIZE = ("cells", "touched", "cell_probability")
DIMENSIONS = {**dict.fromkeys((*AT_IMAGE_SIZE, "cells", "touched"), 3), "effects": 2, "cell_probability": 1}
"""Inputs that are reduced to columns -> number of their dimensions."""

ARRAYS = tuple(DIMENSIONS)

PIXELS_AT_ONCE = 200_000
"""Number of pixels of maps that are reduced together; with more than a processor's cache it takes longer."""

DESCRIPTION = "How faithful and how well localised the explanations of an image classifier are."

CITATION = """\
@inproceedings{chowdhury2024cape,
  title={{CAPE}: {CAM} as a Probabilistic Ensemble for Enhanced {DNN} Interpretation},
  author={Chowdhury, Townim Faisal and Liao, Kewen and Phan, Vu Minh Hieu and To, Minh-Son and Xie, Yutong and Hung,
    Kevin and Ross, David and van den Hengel, Anton and Verjans, Johan W. and Liao, Zhibin},
  booktitle={CVPR},
  year={2024}
}
"""

INPUTS = """
Args:
    confidence: Probability y of the class on the image; one number in [0, 1] per image, as in every argument here.
    kept: Probability o of the same class on E⊙x.
    removed: Probability d of the same class on (1 - E)⊙x.
    coherency: (1 + correlation of the map of x with that of E⊙x) / 2.
    complexity: Mean of |E|.
    iou: Overlap of the two top classes' regions.
    localization_precision, activation_precision, activation_sensitivity, pointing_game, hit_rate, iou_otsu: Scores of
        maps against annotations.
    causal_rank, causal_linear: Correlations, in [-1, 1], of what a map holds on the parts of the image with what
        changes when each part is gone.
    idle_share: Share of the map on parts whose removal changes nothing.
    largest_evidence: Largest evidence of the map, in its own unit; together with annotated it gives false_alarms.
    annotated: 1 for an image with an annotation, 0 for one without.
    maps: Maps E in [0, 1] at image size, (B, H, W), for complexity. Maps that hold NaN or infinity are refused.
    kept_maps: Maps of E⊙x for the same classes, (B, H, W); together with maps they give coherency.
    second_maps: Maps of the second classes, (B, H, W); together with maps they give iou.
    masks: Masks, (B, H, W), true on the annotation; together with maps they give the localisation scores.
    regions: Number of the part of every pixel, (B, H, W), from 0, negative for none; together with maps and effects
        they give the causal scores.
    effects: Drop of the log-odds of the class when a part is gone, (B, parts), NaN for a part that the image lacks.
    cells: Maps at their own resolution, (B, h, w), before they are scaled to [0, 1].
    touched: True for cells that touch the annotation, (B, h, w), false everywhere in an image without one.
    cell_probability: Probability of the class whose map `cells` is, (B,); together with cells and touched it gives
        reliability and false_alarms.
Returns:
    Percent of every score whose inputs are there: average_drop, increase_in_confidence, average_drop_in_deletion,
    coherency, complexity, adcc (mean over images), adcc_of_means, miou, localization_precision (mean over the 1 to 30
    highest patches), activation_precision, activation_sensitivity, pointing_game, hit_rate (with a tolerance of 15/224
    of the side), iou_otsu, idle_share, false_alarms (share of images without an annotation whose largest evidence is
    above the median of the others), and from arrays alone pxap, max_box_accuracy (MaxBoxAccV2) and reliability (a list:
    share of cells that touch the annotation, by mass, NaN for no cells). causal_rank and causal_linear are means of
    correlations, from -1 to 1.
Examples:
    >>> scores.compute(confidence=[0.8, 0.5], kept=[0.4, 0.6])
    {'average_drop': 25.0, 'increase_in_confidence': 50.0}
"""


class ExplanationScores(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """Average drop, increase in confidence, ADD, ADCC, mIoU and localisation scores, in percent."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {name: datasets.Value("float32") for name in COLUMNS}
                | {name: datasets.Sequence(datasets.Value("float32"), length) for name, length in LISTS.items()}
            ),
            format=None,  # with "numpy", evaluate refuses columns of lists
        )

    def add(self, **inputs: Any) -> None:
        """Add one image: numbers, and arrays (H, W)."""
        self.add_batch(**{name: torch.as_tensor(value)[None] for name, value in inputs.items() if value is not None})

    def add_batch(self, **inputs: Any) -> None:
        """Add images: numbers (B,), and arrays (B, H, W)."""
        columns = make_columns({name: to_tensor(value, name) for name, value in inputs.items() if value is not None})
        count = len(next(iter(columns.values())))
        for name in COLUMNS:
            columns.setdefault(name, torch.full((count,), torch.nan))
        for name, length in LISTS.items():
            columns.setdefault(name, torch.full((count, length), torch.nan))
        super().add_batch(**{name: column.numpy() for name, column in columns.items()})

    def compute(self, **inputs: Any) -> dict[str, Any] | None:
        """Return the scores of all images added so far and of these; None on all processes but the first."""
        if any(value is not None for value in inputs.values()):
            self.add_batch(**inputs)
        elif self.writer is None:
            require(self.num_process > 1, f"nothing to score: give some of {', '.join(COLUMNS + ARRAYS)}")
            super().add_batch(
                **{name: [] for name in (*COLUMNS, *LISTS)}
            )  # the other processes wait for this one's file
        results = super().compute()
        require(results != {}, "no score has all of its inputs: average drop, for one, needs confidence and kept")
        return results

    def _compute(self, **columns: list[Any]) -> dict[str, Any]:
        return scores({name: torch.tensor(np.asarray(values, dtype=np.float32)) for name, values in columns.items()})


def to_tensor(values: Any, name: str) -> Tensor:
    """Turn numbers or arrays, one per image, into a tensor on the CPU and without gradient."""
    require(name in COLUMNS + ARRAYS, f"unknown input {name!r}: expected some of {', '.join(COLUMNS + ARRAYS)}")
    require(isinstance(values, Tensor | np.ndarray | Sequence), f"expected {name} as a list or array, got {values!r}")
    if isinstance(values, Sequence):
        items = [torch.as_tensor(value).detach().cpu() for value in values]
        sizes = sorted({tuple(item.shape) for item in items})
        require(len(sizes) <= 1, f"all of {name} must have one size, got {sizes}: add other sizes as another batch")
        values = torch.stack(items) if items else torch.zeros(0)
    values = torch.as_tensor(values).detach().cpu()
    axes = DIMENSIONS.get(name, 1)
    wanted = ("one number per image", "a row of numbers per image", "arrays (H, W), one per image")[axes - 1]
    require(values.ndim == axes and len(values) > 0, f"expected {name} as {wanted}, got shape {tuple(values.shape)}")
    return values


def make_columns(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make columns (B,) in float32 from numbers and from arrays."""
    require(bool(inputs), f"nothing to add: give some of {', '.join(COLUMNS + ARRAYS)}")
    lengths = {name: len(values) for name, values in inputs.items()}
    require(len(set(lengths.values())) == 1, f"all inputs must be of the same images, got {lengths}")
    columns = {name: check_range(values, name) for name, values in inputs.items() if name in COLUMNS}
    reduced = reduce_arrays({name: values for name, values in inputs.items() if name in ARRAYS})
    twice = sorted(columns.keys() & reduced.keys())
    require(not twice, f"{', '.join(twice)} would come from the arrays too: give either the numbers or the arrays")
    return {**columns, **reduced}


def check_range(values: Tensor, name: str) -> Tensor:
    """Check that values lie in their range, but for rounding, and return them in float32."""
    values = values.float()
    low, high = RANGES.get(name, (0.0, 1.0))
    wrong = (~((values >= low - 1e-4) & (values <= high + 1e-4) & values.isfinite())).nonzero().flatten().tolist()
    if wrong:
        value = f"{name} must lie in [{low:g}, {high:g}], but number {wrong[0]} is {float(values[wrong[0]]):.6g}"
        advice = (
            "leave out images without one"
            if name in RANGES
            else "give probabilities, neither logits nor percent nor NaN"
        )
        raise ValueError(f"{value}: {advice}")
    return values.clamp(low, high)


def reduce_arrays(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reduce arrays to columns (B,), a few images at a time."""
    at_cells = {name: values for name, values in arrays.items() if name in AT_CELL_SIZE}
    at_image = {name: values for name, values in arrays.items() if name not in AT_CELL_SIZE}
    missing = [name for name in AT_CELL_SIZE if name not in at_cells] if at_cells else []
    require(not missing, f"{', '.join(AT_CELL_SIZE)} belong together: give {' and '.join(missing)} too")
    return (reduce_cells(**at_cells) if at_cells else {}) | (reduce_large(at_image) if at_image else {})


def reduce_large(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reduce arrays at image size (B, H, W), and effects of parts (B, n), to columns (B,)."""
    require("maps" in arrays, f"{', '.join(arrays)} can only be scored against maps: give maps too")
    require(("regions" in arrays) == ("effects" in arrays), "regions and effects belong together: give both")
    for name in arrays.keys() & set(AT_IMAGE_SIZE):
        check_same_size(arrays["maps"], arrays[name], f"maps and {name}")
    for name in arrays.keys() & {"maps", "kept_maps", "second_maps"}:
        images = broken(arrays[name]).nonzero().flatten().tolist()
        require(
            not images, f"{name} of images {images} hold NaN or infinity, which has no score: leave these images out"
        )
    if "masks" in arrays:
        check_masks(arrays["masks"])
    at_once = max(PIXELS_AT_ONCE // max(arrays["maps"][0].numel(), 1), 1)
    splits = (values.split(at_once) for values in arrays.values())
    parts = [reduce_part(**dict(zip(arrays, part, strict=True))) for part in zip(*splits, strict=True)]
    return {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}


def reduce_cells(cells: Tensor, touched: Tensor, cell_probability: Tensor) -> dict[str, Tensor]:
    """Reduce maps at their own resolution (B, h, w) to columns."""
    check_same_size(cells, touched, "cells and touched")
    images = broken(cells).nonzero().flatten().tolist()
    require(not images, f"cells of images {images} hold NaN or infinity, which has no score: leave these images out")
    require(bool(((touched == 0) | (touched == 1)).all()), "touched must be boolean or hold only 0 and 1")
    masses = cell_masses(cells, check_range(cell_probability, "cell_probability"))
    return {
        "mass_histogram": mass_histograms(masses, touched.bool()).flatten(1).float(),
        "largest_evidence": largest_evidence(cells).float(),
        "annotated": touched.bool().flatten(1).any(dim=1).float(),
    }


def reduce_part(
    maps: Tensor,
    kept_maps: Tensor | None = None,
    second_maps: Tensor | None = None,
    masks: Tensor | None = None,
    regions: Tensor | None = None,
    effects: Tensor | None = None,
) -> dict[str, Tensor]:
    """Reduce the arrays of a few images to columns."""
    columns = {"complexity": complexity(maps)}
    if regions is not None and effects is not None:
        shares = share_of_map(maps, regions, effects.shape[1])
        columns["causal_rank"], columns["causal_linear"] = causal_correlations(shares, effects, effects)
        columns["idle_share"] = total_share(shares, idle_parts(effects))
    if kept_maps is not None:
        columns["coherency"] = coherency(maps, kept_maps)
    if second_maps is not None:
        columns["iou"] = top_two_iou(maps, second_maps)
    if masks is not None:
        columns["localization_precision"] = localization_precision(maps, masks).mean(dim=1)
        columns["activation_precision"] = activation_precision(maps, masks)
        columns["activation_sensitivity"] = activation_sensitivity(maps, masks)
        columns["pointing_game"] = pointing_game(maps, masks)
        columns["hit_rate"] = hit_rate(maps, masks)
        columns["iou_otsu"] = iou_otsu(maps, masks)
        columns["pixel_histogram"] = pixel_histograms(maps, masks).flatten(1)
        columns["box_ious"] = box_ious(maps, annotation_boxes(masks))
    return columns


def identity(values: Tensor) -> Tensor:
    """Return the values of a score that is a column itself."""
    return values


MEASURES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "average_drop": (average_drop, ("confidence", "kept")),
    "increase_in_confidence": (increase_in_confidence, ("confidence", "kept")),
    "average_drop_in_deletion": (average_drop_in_deletion, ("confidence", "removed")),
    "coherency": (identity, ("coherency",)),
    "complexity": (identity, ("complexity",)),
    "miou": (identity, ("iou",)),
    "localization_precision": (identity, ("localization_precision",)),
    "activation_precision": (identity, ("activation_precision",)),
    "activation_sensitivity": (identity, ("activation_sensitivity",)),
    "pointing_game": (identity, ("pointing_game",)),
    "hit_rate": (identity, ("hit_rate",)),
    "iou_otsu": (identity, ("iou_otsu",)),
    "idle_share": (identity, ("idle_share",)),
}
"""Score -> function that computes it for every image, and the columns that the function takes."""

CORRELATIONS = ("causal_rank", "causal_linear")
ADCC_PARTS = ("coherency", "complexity", "confidence", "kept")


def pxap_of(histograms: Tensor) -> Tensor:
    """Compute the pixel average precision of a data set from the histograms of its images, (B, 202)."""
    return pixel_average_precision(histograms.double().sum(dim=0).unflatten(0, (2, -1)))


def max_box_accuracy_of(ious: Tensor) -> Tensor:
    """Compute MaxBoxAccV2 of a data set from the IoUs of its images at all thresholds, (B, thresholds)."""
    return max_box_accuracies(box_hits(ious.double()).sum(dim=0)).mean()


OF_LISTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "pxap": (pxap_of, "pixel_histogram"),
    "max_box_accuracy": (max_box_accuracy_of, "box_ious"),
}
"""Score that is no mean over images -> function of the lists of all images, and the column of lists."""


def scores(columns: dict[str, Tensor]) -> dict[str, Any]:
    """Compute every score that some image has all inputs of: in percent, but for correlations."""
    results: dict[str, Any] = {}
    for score, values in scores_of_images(columns).items():
        known = values[~values.isnan()]
        if len(known):
            results[score] = percent(known)
    coherencies, complexities, *confidences = select_complete(columns, ADCC_PARTS)
    if len(coherencies):
        parts = (coherencies, complexities, average_drop(*confidences))
        results["adcc_of_means"] = percent(adcc(*(part.double().mean() for part in parts)))
    for score, (function, name) in OF_LISTS.items():
        lists = columns[name][~columns[name].isnan().any(dim=1)] if name in columns else torch.zeros(0)
        if len(lists):
            results[score] = percent(function(lists))
    for name in CORRELATIONS:
        known = columns[name][~columns[name].isnan()]
        if len(known):
            results[name] = float(known.double().mean())
    largest, annotated = select_complete(columns, ("largest_evidence", "annotated"))
    alarms = false_alarms(largest.double(), annotated > 0)
    if not alarms.isnan():
        results["false_alarms"] = percent(alarms)
    if "mass_histogram" in columns:
        masses = columns["mass_histogram"][~columns["mass_histogram"].isnan().any(dim=1)].double()
        if len(masses):
            results["reliability"] = (100 * reliability(masses.sum(dim=0).unflatten(0, (3, -1)))).tolist()
    return results


def scores_of_images(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute every score that is a mean over images, (images,) in [0, 1]; NaN for an image without all inputs."""
    results = {}
    for score, (measure, names) in {**MEASURES, "adcc": (adcc_of_parts, ADCC_PARTS)}.items():
        present = ~torch.stack([columns[name] for name in names]).isnan().any(dim=0)
        values = torch.full_like(columns[names[0]], torch.nan)
        values[present] = measure(*(columns[name][present] for name in names)).to(values)
        results[score] = values
    return results


def adcc_of_parts(coherency: Tensor, complexity: Tensor, confidence: Tensor, kept: Tensor) -> Tensor:
    """Compute ADCC of the columns that it is made of."""
    return adcc(coherency, complexity, average_drop(confidence, kept))


def select_complete(columns: dict[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Return the named columns for the images that have all of them."""
    present = ~torch.stack([columns[name] for name in names]).isnan().any(dim=0)
    return [columns[name][present] for name in names]


def percent(values: Tensor) -> float:
    """Return the mean in percent."""
    return 100 * float(values.double().mean())
