"""Find out how often each measure prefers the map that is right to maps that are wrong, and write rows.

python -m benchmarks.measures.study            # rows go to benchmarks/results/measures.jsonl; 15 minutes of a core
python -m benchmarks.measures.study --quick    # a smoke test on four images, nothing written
python -m benchmarks.measures.study --measures "hit rate"    # measure some again, and replace their rows

Every measure scores every map of every image. Its share of right decisions against one kind of wrong map is the share
of images on which the right map scores better, where equal scores count half.
"""

import argparse
import json
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Row, environment, read_rows, rounded, write_rows
from softcam_hub.arguments import ArgumentParser, check_names
from softcam_hub.evaluation.localisation import bounding_boxes
from softcam_hub.evaluation.statistics import bootstrap_means
from softcam_hub.explanation_scores.faithfulness import (
    average_drop,
    average_drop_in_deletion,
    increase_in_confidence,
)
from softcam_hub.explanation_scores.idsds import cell_drops, cell_means
from softcam_hub.explanation_scores.localization import (
    activation_precision,
    activation_sensitivity,
    energy_pointing_game,
    hit_rate,
    localization_precision,
    pointing_game,
)
from softcam_hub.explanation_scores.maps import patch_means, patch_side
from softcam_hub.explanation_scores.perturbation import (
    deletion_auc,
    faithfulness_parts,
    insertion_auc,
    patch_drops,
    spearman,
    topk_sensitivity,
)
from softcam_hub.explanation_scores.road import road
from softcam_hub.explanation_scores.thresholds import iou_otsu

from .known_maps import BAD, GOOD, Cases, load_model, make_cases

ROWS = Path(__file__).parents[1] / "results" / "measures.jsonl"
IMAGES = 96

Score = Callable[[str], Tensor]
"""Function from the name of maps to values (B,)."""


class Measures:
    """The measures of all maps of some images, by name, with whether higher is better.

    Args:
        model: Self-explaining model.
        cases: Images and maps.
    """

    def __init__(self, model: torch.nn.Module, cases: Cases) -> None:
        self.model, self.cases = model, cases
        self.by_name: dict[str, tuple[Score, bool]] = {
            "average drop": (lambda name: average_drop(*self._parts(name, "kept")), False),
            "increase in confidence": (lambda name: increase_in_confidence(*self._parts(name, "kept")), True),
            "average drop in deletion": (lambda name: average_drop_in_deletion(*self._parts(name, "removed")), True),
            "top-k sensitivity": (lambda name: self._on_images(topk_sensitivity, name).mean(dim=1), False),
            "insertion": (lambda name: self._on_images(insertion_auc, name), True),
            "deletion": (lambda name: self._on_images(deletion_auc, name), False),
            "ROAD": (lambda name: self._on_images(road, name), True),
            "single deletion": (self._single_deletion, True),
            "IDSDS": (lambda name: spearman(cell_means(self.maps(name)), self._cell_drops), True),
            "pointing game": (lambda name: pointing_game(self.maps(name), cases.masks), True),
            "hit rate": (lambda name: hit_rate(self.maps(name), cases.masks), True),
            "IoU, Otsu": (lambda name: iou_otsu(self.maps(name), cases.masks), True),
            "top-k precision": (lambda name: localization_precision(self.maps(name), cases.masks).mean(dim=1), True),
            "activation precision": (lambda name: activation_precision(self.maps(name), cases.masks), True),
            "energy in box": (self._energy_in_box, True),
            "activation sensitivity": (lambda name: activation_sensitivity(self.maps(name), cases.masks), True),
        }

    def maps(self, name: str) -> Tensor:
        """Return heat maps (B, H, W) by name."""
        return self.cases.maps[name]

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Compute the logits (B, C) of images."""
        return self.model(pixel_values=images).logits

    def probabilities(self, images: Tensor) -> Tensor:
        """Compute the probabilities (B, C) of images."""
        return self.logits(images).softmax(dim=1)

    @cache  # noqa: B019  # an object per study
    def _all_parts(self, name: str) -> dict[str, Tensor]:
        cases = self.cases
        return faithfulness_parts(self.probabilities, cases.images, self.maps(name), classes=cases.labels)

    def _parts(self, name: str, part: str) -> tuple[Tensor, Tensor]:
        parts = self._all_parts(name)
        return parts["confidence"], parts[part]

    def _on_images(self, function: Callable[..., Tensor], name: str) -> Tensor:
        return function(self.probabilities, self.cases.images, self.maps(name), classes=self.cases.labels)

    @cached_property
    def _cell_drops(self) -> Tensor:
        return cell_drops(self.logits, self.cases.images, classes=self.cases.labels)

    @cached_property
    def _patch_drops(self) -> Tensor:
        images = self.cases.images
        return patch_drops(self.logits, images, patch_side(images, None), classes=self.cases.labels)

    def _energy_in_box(self, name: str) -> Tensor:
        return energy_pointing_game(self.maps(name), bounding_boxes(self.cases.masks))

    def _single_deletion(self, name: str) -> Tensor:
        means = patch_means(self.maps(name), patch_side(self.cases.images, None))
        return spearman(means.flatten(1), self._patch_drops)


def decisions(good: Tensor, bad: Tensor, higher_is_better: bool) -> Tensor:
    """Return 1 for images on which the good map scores better, 1/2 for equal scores, and 0 for the others, (B,).

    Args:
        good: Scores of the good maps, (B,).
        bad: Scores of the bad maps, (B,).
        higher_is_better: Direction of the score.
    """
    difference = (good - bad) if higher_is_better else (bad - good)
    equal = torch.isclose(good, bad, rtol=1e-6, atol=1e-9)
    right = torch.where(equal, 0.5, (difference > 0).to(good.dtype))
    return right.masked_fill(good.isnan() | bad.isnan(), torch.nan)


def rows_of(measure: str, score: Score, higher_is_better: bool) -> list[Row]:
    """Return a row for every kind of bad map, and one for their mean.

    Args:
        measure: Name of the measure.
        score: The measure.
        higher_is_better: Its direction.
    """
    values = {kind: score(kind).double() for kind in (GOOD, *BAD)}
    columns = [decisions(values[GOOD], values[kind], higher_is_better) for kind in BAD]
    columns.append(torch.stack(columns).mean(dim=0))
    matrix = torch.stack(columns).numpy()
    found = bootstrap_means([matrix])
    low, high = found.interval()
    kinds = [*BAD, "mean"]
    return [
        {
            "measure": measure,
            "against": kind,
            "share": rounded(float(found.estimate[row])),
            "interval": [rounded(float(low[row])), rounded(float(high[row]))],
            "images": int((~np.isnan(matrix[row])).sum()),
            **environment(),
        }
        for row, kind in enumerate(kinds)
    ]


def main() -> None:
    """Score all maps with all measures, and write the rows."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure four images, and write nothing")
    parser.add_argument("--measures", nargs="*", help="names of measures to measure again; all by default")
    args = parser.parse_args()
    model = load_model()
    by_name = Measures(model, make_cases(model, 4 if args.quick else IMAGES)).by_name
    check_names(args.measures or [], list(by_name), "measure")
    rows: list[Row] = []
    for name, (score, higher_is_better) in by_name.items():
        if args.measures and name not in args.measures:
            rows += [row for row in read_rows(ROWS) if row["measure"] == name]
            continue
        rows += rows_of(name, score, higher_is_better)
        print(json.dumps(rows[-1]), flush=True)
    if not args.quick:
        write_rows(rows, ROWS)


if __name__ == "__main__":
    main()
