"""Remove the parts of generated images one at a time, and compare the maps of a classifier with what changes.

- The parts are those of the drawing (`softcam_hub.data.lesions`) and a few squares of background. A pixel belongs to
  the part that was drawn last over it. Parts of which nothing can be seen are left out.
- A part of the drawing is removed exactly: the twin without it is equal to the bit everywhere else, and goes through
  the preprocessing of the classifier as the image does. A square of background is filled with a blur of its
  surroundings, which is not exact: it removes the noise too.
- The class is the one that the classifier predicts for the whole image. Effects are computed once per image, for all
  explainers. Those that change the log-odds by less than `TOLERANCE` count as none.
- An image in which no part speaks for the class has no correlation: there is no reason that a map could find. Most
  healthy images are such.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.config import DataConfig
from ..data.fundus import Part, field_of_view
from ..data.lesions import LesionImage, draw_twins, list_distractors
from ..data.samples import Samples
from ..data.transforms import make_transforms, region_transform
from ..explanation_scores.causal import (
    causal_correlations,
    choose_background,
    fill_from_surroundings,
    idle_parts,
    log_odds,
    removal_effects,
    share_of_map,
    signed_evidence,
    total_share,
)
from ..explanation_scores.maps import patch_side
from ..explanation_scores.predictions import predict_in_batches
from ..models.heads import describe_kind
from .batch import Batch
from .config import BenchmarkConfig

SQUARES = 4
"""Number of squares of background in an image."""

PART_EVIDENCE = "part_evidence"
"""Name of a list with a value for each part of an image: distractors, squares of background, then lesions."""

ODDS, LOGIT, PROBABILITY = "part_effects", "part_effects_logit", "part_effects_probability"
"""Names of lists with the effect of each part on the log-odds, on the logit and on the probability."""

CORRELATED = {ODDS: "", LOGIT: "_logit"}
"""Effects that evidence is compared with -> ending of the names. Ranks of the probability are those of the log-odds."""

_BACKGROUND, _OUTSIDE = -1, -2
"""Numbers of pixels that show no part: background, and what lies outside the field of view."""


class ImageParts(NamedTuple):
    """The parts of one image, as a classifier takes it.

    Args:
        regions: Number of the part of every pixel, (H, W).
        lesions: Number of lesions that were drawn.
        twins: Number of a part -> image without it, (3, H, W).
    """

    regions: Tensor
    lesions: int
    twins: dict[int, Tensor]


class Removal(NamedTuple):
    """An image without one part.

    Args:
        owner: Position of the whole image in its batch.
        part: Number of the part.
        image: Image without it, (3, H, W).
    """

    owner: int
    part: int
    image: Tensor


class Twins:
    """The parts of generated images, and the images without each of them.

    Args:
        data: Settings from which the images were generated.
        samples: Images of one split.
        preprocessing: Preprocessing of a `LoadedClassifier`.
    """

    def __init__(self, data: DataConfig, samples: Samples, preprocessing: dict[str, Any]) -> None:
        self.data, self.samples = data, samples
        self.transform, self.transform_regions = make_transforms(preprocessing)[1], region_transform(preprocessing)
        self.distractors = list_distractors(data.data)
        self.squares = range(len(self.distractors), len(self.distractors) + SQUARES)
        """Numbers of the squares of background, which come after the distractors and before the lesions."""

    def read(self, index: int) -> ImageParts:
        """Draw the image at `index` of the samples again, and once more without each part that can be seen."""
        place, data = int(self.samples.row_numbers[index]), self.data
        drawn, twins = draw_twins(place, self.samples.split, data.data_size, data.data, data.data_seed)
        regions = self._number_pixels(drawn)
        seen = set(regions.unique().tolist())
        visible = {self._number(part): picture for part, picture in twins.items() if self._number(part) in seen}
        lesions = sum(isinstance(part, int) for part in twins)
        return ImageParts(regions, lesions, {number: self.transform(one) for number, one in visible.items()})

    def _number(self, part: Part) -> int:
        return self.squares.stop + part if isinstance(part, int) else self.distractors.index(part)

    def _number_pixels(self, drawn: LesionImage) -> Tensor:
        """Return the number of the part that each pixel of the preprocessed image shows, (H, W)."""
        regions = np.where(field_of_view(drawn.image.width), _BACKGROUND, _OUTSIDE)
        for part, mask in drawn.part_masks.items():  # in the order of drawing, so that the last one is seen
            regions[mask] = self._number(part)
        # numbers are never negative on the way, and a border that a crop adds lies outside too
        return self.transform_regions(regions - _OUTSIDE) + _OUTSIDE


def measure_causal(
    batch: Batch, twins: Twins, indices: Sequence[int], config: BenchmarkConfig
) -> dict[str, dict[str, Any]]:
    """Compute the causal scores (B,) of every explainer, and lists with the values of every part.

    Args:
        batch: Images of one classifier.
        twins: Parts of the images of the split, for this classifier.
        indices: Positions of the images in the split.
        config: Settings of the benchmark.
    """
    images = [twins.read(index) for index in indices]
    regions, side = torch.stack([one.regions for one in images]), patch_side(batch.images, config.patch)
    squares = choose_background(regions == _BACKGROUND, side, SQUARES, [(config.seed, index) for index in indices])
    for number, covered in zip(twins.squares, squares.unbind(dim=1), strict=True):
        regions[covered] = number
    counts = [twins.squares.stop + one.lesions for one in images]
    removals = _remove_parts(batch.images, images, squares, twins.squares, side)
    effects = _measure_effects(batch, list(removals), max(counts), config.batch_size)
    by_part = {name: _as_lists(values, counts) for name, values in effects.items()}
    columns = {}
    for name, maps in batch.maps.items():
        signed = describe_kind(name).signed
        large = batch.enlarge(name, maps[:, 0] if signed else maps[:, 0].relu())
        shares = share_of_map(large, regions, max(counts))
        evidence = signed_evidence(large, regions, max(counts)) if signed else shares
        columns[name] = _score(evidence, shares, effects, twins.squares) | by_part
        columns[name][PART_EVIDENCE] = _as_lists(evidence, counts)
    return columns


def _remove_parts(
    whole: Tensor, images: Sequence[ImageParts], squares: Tensor, numbers: range, side: int
) -> Iterator[Removal]:
    """Yield every image without each of its parts and squares of background.

    Args:
        whole: Images, (B, 3, H, W).
        images: Parts of the images.
        squares: Squares of background, booleans (B, n, H, W).
        numbers: Numbers of the squares.
        side: Side of a square in pixels.
    """
    filled = fill_from_surroundings(whole, squares.any(dim=1).to(whole.device), side)
    for owner, parts in enumerate(images):
        for number, twin in parts.twins.items():
            yield Removal(owner, number, twin.to(whole.device))
        for number, square in zip(numbers, squares[owner], strict=True):
            if square.any():  # there was room for it
                yield Removal(owner, number, torch.where(square.to(whole.device), filled[owner], whole[owner]))


def _measure_effects(batch: Batch, removals: Sequence[Removal], count: int, at_once: int) -> dict[str, Tensor]:
    """Compute the drop of three outputs by each removal, (B, count), NaN where there is none.

    Args:
        batch: Images of one classifier.
        removals: Images without one part.
        count: Number of parts.
        at_once: Number of images per forward pass.
    """
    effects = {name: torch.full((len(batch.images), count), torch.nan).double() for name in (ODDS, LOGIT, PROBABILITY)}
    if not removals:
        return effects
    after = predict_in_batches(batch.classifier.explained.logits, torch.stack([one.image for one in removals]), at_once)
    if not after.isfinite().all():
        raise ValueError(
            f"the {batch.classifier.role} predicts NaN for an image without one of its parts, although not for the "
            "whole image: its weights are broken, or its precision is too low"
        )
    owners = torch.tensor([one.owner for one in removals])
    parts = torch.tensor([one.part for one in removals])
    as_odds = (lambda logits: logits) if batch.classifier.multi_label else log_odds
    outputs = {
        ODDS: (as_odds(batch.logits), as_odds(after)),
        LOGIT: (batch.logits, after),
        PROBABILITY: (batch.probabilities, batch.classifier.probabilities(after)),
    }
    for name, (whole, without) in outputs.items():
        drops = removal_effects(whole, without, owners.to(whole.device), batch.predicted)
        effects[name][owners, parts] = drops.cpu().double()
    return effects


def _score(evidence: Tensor, shares: Tensor, effects: dict[str, Tensor], squares: range) -> dict[str, Any]:
    """Compute the scores (B,) of one explainer.

    Args:
        evidence: Evidence on each part, (B, n).
        shares: Share of the map on each part, (B, n).
        effects: Effects of each part, (B, n), by output.
        squares: Numbers of the squares of background.
    """
    is_square = torch.zeros(shares.shape, dtype=torch.bool)
    is_square[:, squares.start : squares.stop] = True
    idle, found = idle_parts(effects[ODDS]), {}
    for output, ending in CORRELATED.items():
        rank, linear = causal_correlations(evidence, effects[output], effects[ODDS])
        found |= {"causal_rank" + ending: rank, "causal_linear" + ending: linear}
    found["idle_share"] = total_share(shares, idle & ~is_square)
    found["background_share"] = total_share(shares, is_square)
    return found


def _as_lists(values: Tensor, counts: Sequence[int]) -> list[list[float | None]]:
    """Return the values (B, n) of the parts that each image can have, None where it does not show one."""
    rows = zip(values.tolist(), counts, strict=True)
    return [[None if math.isnan(value) else value for value in row[:count]] for row, count in rows]
