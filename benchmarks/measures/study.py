"""Find out how often each measure prefers the map that is right to maps that are wrong, and write rows.

python -m benchmarks.measures.study            # rows go to benchmarks/results/measures.jsonl; ten minutes of one core
python -m benchmarks.measures.study --quick    # a smoke test on four images, nothing written

Every measure scores every map of every image. Its share of right decisions against one kind of wrong map is the share
of images on which the right map scores better, where equal scores count half.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Row, environment, rounded, write_rows
from softcam_hub.arguments import ArgumentParser
from softcam_hub.evaluation.statistics import bootstrap_means
from softcam_hub.explanation_scores.faithfulness import (
    average_drop,
    average_drop_in_deletion,
    increase_in_confidence,
)
from softcam_hub.explanation_scores.idsds import idsds
from softcam_hub.explanation_scores.localization import (
    activation_precision,
    activation_sensitivity,
    localization_precision,
    pointing_game,
)
from softcam_hub.explanation_scores.perturbation import (
    deletion_auc,
    faithfulness_parts,
    insertion_auc,
    single_deletion,
    topk_sensitivity,
)
from softcam_hub.explanation_scores.road import road

from .known_maps import BAD, GOOD, Cases, load_model, make_cases

ROWS = Path(__file__).parents[1] / "results" / "measures.jsonl"
IMAGES = 96

Score = Callable[[Cases, Tensor], Tensor]
"""Function from images and maps (B, H, W) to values (B,)."""


class Measures:
    """The measures of a model, by name, with whether higher is better.

    Args:
        model: Self-explaining model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.by_name: dict[str, tuple[Score, bool]] = {
            "average drop": (lambda c, m: average_drop(*self._parts(c, m, "confidence", "kept")), False),
            "increase in confidence": (
                lambda c, m: increase_in_confidence(*self._parts(c, m, "confidence", "kept")),
                True,
            ),
            "average drop in deletion": (
                lambda c, m: average_drop_in_deletion(*self._parts(c, m, "confidence", "removed")),
                True,
            ),
            "top-k sensitivity": (lambda c, m: self._on_images(topk_sensitivity, c, m).mean(dim=1), False),
            "insertion": (lambda c, m: self._on_images(insertion_auc, c, m), True),
            "deletion": (lambda c, m: self._on_images(deletion_auc, c, m), False),
            "ROAD": (lambda c, m: self._on_images(road, c, m), True),
            "single deletion": (lambda c, m: self._on_logits(single_deletion, c, m), True),
            "IDSDS": (lambda c, m: self._on_logits(idsds, c, m), True),
            "pointing game": (lambda c, m: pointing_game(m, c.masks), True),
            "top-k precision": (lambda c, m: localization_precision(m, c.masks).mean(dim=1), True),
            "activation precision": (lambda c, m: activation_precision(m, c.masks), True),
            "activation sensitivity": (lambda c, m: activation_sensitivity(m, c.masks), True),
        }

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Compute the probabilities (B, C) of images."""
        return self.model(pixel_values=images).logits.softmax(dim=1)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Compute the logits (B, C) of images."""
        return self.model(pixel_values=images).logits

    def _parts(self, cases: Cases, maps: Tensor, *names: str) -> list[Tensor]:
        parts = faithfulness_parts(self.probabilities, cases.images, maps, classes=cases.labels)
        return [parts[name] for name in names]

    def _on_images(self, function: Callable[..., Tensor], cases: Cases, maps: Tensor) -> Tensor:
        return function(self.probabilities, cases.images, maps, classes=cases.labels)

    def _on_logits(self, function: Callable[..., Tensor], cases: Cases, maps: Tensor) -> Tensor:
        return function(self.logits, cases.images, maps, classes=cases.labels)


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


def rows_of(name: str, score: Score, higher_is_better: bool, cases: Cases) -> list[Row]:
    """Return a row for every kind of bad map, and one for their mean.

    Args:
        name: Name of the measure.
        score: The measure.
        higher_is_better: Its direction.
        cases: Images and maps.
    """
    values = {kind: score(cases, maps).double() for kind, maps in cases.maps.items()}
    columns = [decisions(values[GOOD], values[kind], higher_is_better) for kind in BAD]
    columns.append(torch.stack(columns).mean(dim=0))
    matrix = torch.stack(columns).numpy()
    found = bootstrap_means([matrix])
    low, high = found.interval()
    kinds = [*BAD, "mean"]
    return [
        {
            "measure": name,
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
    quick = parser.parse_args().quick
    model = load_model()
    cases = make_cases(model, 4 if quick else IMAGES)
    rows: list[Row] = []
    for name, (score, higher_is_better) in Measures(model).by_name.items():
        rows += rows_of(name, score, higher_is_better, cases)
        print(json.dumps(rows[-1]), flush=True)
    if not quick:
        write_rows(rows, ROWS)


if __name__ == "__main__":
    main()
