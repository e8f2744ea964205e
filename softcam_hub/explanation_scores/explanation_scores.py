"""The scores as an `evaluate` metric: it reduces arrays to one number per image, and leaves the rest to the functions.

- Every input is optional, and a score is the mean over the images that have all of its inputs. `evaluate` knows no
  optional inputs: what an image lacks is NaN in the cache.
- Arrays are reduced as they come in. Through the cache they would be slow and large.
- `evaluate` copies only the files that are imported here, so that those must import no others.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

from .faithfulness import (
    adcc,
    average_drop,
    average_drop_in_deletion,
    coherency,
    complexity,
    increase_in_confidence,
    top_two_iou,
)
from .localization import activation_precision, activation_sensitivity, check_masks, localization_precision
from .maps import broken, check, check_same_size

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
)
"""One number per image each, in [0, 1]."""

ARRAYS = ("maps", "kept_maps", "second_maps", "masks")
"""(H, W) per image each; they are reduced to columns."""

PIXELS_AT_ONCE = 200_000
"""Of maps that are reduced together: what fits into a processor's cache is four times as fast as 320 maps at once."""

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
    confidence: y, probability of the class on the image; one number in [0, 1] per image, as in every argument here.
    kept: o, probability of the same class on E⊙x.
    removed: d, probability of the same class on (1 - E)⊙x.
    coherency: (1 + correlation of the map of x with that of E⊙x) / 2.
    complexity: mean of |E|.
    iou: overlap of the two top classes' regions.
    localization_precision, activation_precision, activation_sensitivity: of maps against annotations.
    maps: E in [0, 1], (B, H, W) at image size; gives complexity. Maps that hold NaN or infinity are refused.
    kept_maps: (B, H, W), the maps of E⊙x for the same classes; with maps it gives coherency.
    second_maps: (B, H, W), the maps of the second classes; with maps it gives iou.
    masks: (B, H, W), true on the annotation; with maps it gives the three localisation scores.
Returns:
    In percent, those of which the inputs were given: average_drop, increase_in_confidence, average_drop_in_deletion,
    coherency, complexity, adcc (mean over images), adcc_of_means, miou, localization_precision (mean over the 1 to 30
    highest patches), activation_precision, activation_sensitivity.
Examples:
    >>> scores.compute(confidence=[0.8, 0.5], kept=[0.4, 0.6])
    {'average_drop': 25.0, 'increase_in_confidence': 50.0}
"""


class ExplanationScores(evaluate.Metric):
    """Average drop, increase in confidence, ADD, ADCC, mIoU and localisation scores, in percent."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({name: datasets.Value("float32") for name in COLUMNS}),
            format="numpy",
        )

    def add(self, **inputs: Any) -> None:
        """Add one image: numbers, and arrays (H, W)."""
        self.add_batch(**{name: torch.as_tensor(value)[None] for name, value in inputs.items() if value is not None})

    def add_batch(self, **inputs: Any) -> None:
        """Add images: numbers (B,), and arrays (B, H, W)."""
        given = columns_of({name: to_tensor(value, name) for name, value in inputs.items() if value is not None})
        count = len(next(iter(given.values())))
        missing = np.full(count, np.nan, dtype=np.float32)
        super().add_batch(**{name: given[name].numpy() if name in given else missing for name in COLUMNS})

    def compute(self, **inputs: Any) -> dict[str, float] | None:
        """The scores of all images added so far and of those given here; None but on process 0."""
        if any(value is not None for value in inputs.values()):
            self.add_batch(**inputs)
        elif self.writer is None:
            check(self.num_process > 1, f"nothing to score: give some of {', '.join(COLUMNS + ARRAYS)}")
            super().add_batch(**{name: [] for name in COLUMNS})  # the other processes wait for this one's file
        found = super().compute()
        check(
            found != {},
            "no score has all of its inputs: average drop, for one, needs confidence and kept",
        )
        return found

    def _compute(self, **columns: np.ndarray) -> dict[str, float]:
        return scores({name: torch.from_numpy(np.asarray(values)) for name, values in columns.items()})


def to_tensor(values: Any, name: str) -> Tensor:
    """Numbers or arrays, one per image, on the CPU and without gradient."""
    check(name in COLUMNS + ARRAYS, f"unknown input {name!r}: expected some of {', '.join(COLUMNS + ARRAYS)}")
    check(isinstance(values, Tensor | np.ndarray | Sequence), f"expected {name} as a list or array, got {values!r}")
    if isinstance(values, Sequence):
        items = [torch.as_tensor(value).detach().cpu() for value in values]
        sizes = sorted({tuple(item.shape) for item in items})
        check(len(sizes) <= 1, f"all of {name} must have one size, got {sizes}: add other sizes as another batch")
        values = torch.stack(items) if items else torch.zeros(0)
    values = torch.as_tensor(values).detach().cpu()
    axes = 3 if name in ARRAYS else 1
    wanted = "arrays (H, W), one per image" if name in ARRAYS else "one number per image"
    check(values.ndim == axes and len(values) > 0, f"expected {name} as {wanted}, got shape {tuple(values.shape)}")
    return values


def columns_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Columns (B,) in float32: those given, and those that the arrays give."""
    check(bool(inputs), f"nothing to add: give some of {', '.join(COLUMNS + ARRAYS)}")
    lengths = {name: len(values) for name, values in inputs.items()}
    check(len(set(lengths.values())) == 1, f"all inputs must be of the same images, got {lengths}")
    columns = {name: in_range(values, name) for name, values in inputs.items() if name in COLUMNS}
    reduced = reduce({name: values for name, values in inputs.items() if name in ARRAYS})
    twice = sorted(columns.keys() & reduced.keys())
    check(not twice, f"{', '.join(twice)} would come from the arrays too: give either the numbers or the arrays")
    return {**columns, **reduced}


def in_range(values: Tensor, name: str) -> Tensor:
    values = values.float()
    wrong = (~((values >= -1e-4) & (values <= 1 + 1e-4))).nonzero().flatten().tolist()
    if wrong:
        found = f"{name} must lie in [0, 1], but number {wrong[0]} is {float(values[wrong[0]]):.6g}"
        raise ValueError(f"{found}: give probabilities, neither logits nor percent nor NaN")
    return values.clamp(0, 1)


def reduce(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Arrays (B, H, W) -> columns (B,), a few images at a time."""
    if not arrays:
        return {}
    check("maps" in arrays, f"{', '.join(arrays)} can only be scored against maps: give maps too")
    for name, values in arrays.items():
        check_same_size(arrays["maps"], values, f"maps and {name}")
    for name in [name for name in arrays if name != "masks"]:
        without = broken(arrays[name]).nonzero().flatten().tolist()
        check(
            not without, f"{name} of images {without} hold NaN or infinity, which has no score: leave these images out"
        )
    if "masks" in arrays:
        check_masks(arrays["masks"])
    at_once = max(PIXELS_AT_ONCE // max(arrays["maps"][0].numel(), 1), 1)
    splits = (values.split(at_once) for values in arrays.values())
    parts = [reduce_part(**dict(zip(arrays, part, strict=True))) for part in zip(*splits, strict=True)]
    return {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}


def reduce_part(
    maps: Tensor,
    kept_maps: Tensor | None = None,
    second_maps: Tensor | None = None,
    masks: Tensor | None = None,
) -> dict[str, Tensor]:
    columns = {"complexity": complexity(maps)}
    if kept_maps is not None:
        columns["coherency"] = coherency(maps, kept_maps)
    if second_maps is not None:
        columns["iou"] = top_two_iou(maps, second_maps)
    if masks is not None:
        columns["localization_precision"] = localization_precision(maps, masks).mean(dim=1)
        columns["activation_precision"] = activation_precision(maps, masks)
        columns["activation_sensitivity"] = activation_sensitivity(maps, masks)
    return columns


def as_given(values: Tensor) -> Tensor:
    return values


MEASURES = {
    "average_drop": (average_drop, ("confidence", "kept")),
    "increase_in_confidence": (increase_in_confidence, ("confidence", "kept")),
    "average_drop_in_deletion": (average_drop_in_deletion, ("confidence", "removed")),
    "coherency": (as_given, ("coherency",)),
    "complexity": (as_given, ("complexity",)),
    "miou": (as_given, ("iou",)),
    "localization_precision": (as_given, ("localization_precision",)),
    "activation_precision": (as_given, ("activation_precision",)),
    "activation_sensitivity": (as_given, ("activation_sensitivity",)),
}
"""Score -> what gives it, one number per image, of which columns."""

ADCC_PARTS = ("coherency", "complexity", "confidence", "kept")


def scores(columns: dict[str, Tensor]) -> dict[str, float]:
    """Percent of every score that some image has all inputs of."""
    found = {}
    for score, (measure, names) in MEASURES.items():
        inputs = complete(columns, names)
        if len(inputs[0]):
            found[score] = percent(measure(*inputs))
    coherencies, complexities, *confidences = complete(columns, ADCC_PARTS)
    if len(coherencies):
        parts = (coherencies, complexities, average_drop(*confidences))
        found["adcc"] = percent(adcc(*parts))
        found["adcc_of_means"] = percent(adcc(*(part.double().mean() for part in parts)))
    return found


def complete(columns: dict[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """The named columns, of the images that have all of them."""
    present = ~torch.stack([columns[name] for name in names]).isnan().any(dim=0)
    return [columns[name][present] for name in names]


def percent(values: Tensor) -> float:
    return 100 * float(values.double().mean())
