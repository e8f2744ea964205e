"""Measure how far explainers agree: the rank correlation of the heat maps of each pair on the same images.

- Heat maps are of the class that the explained classifier predicts, and have the size of its images. Their pixels are
  ranked, equal values with the mean of their ranks (Spearman). The result is the mean over images.
- A pair has no value for an image where one of its two maps is the same everywhere, or where the model and the vanilla
  classifier predict different classes: two maps of different classes are expected to differ. Every mean comes with its
  number of images.
- Maps of a model and of a vanilla classifier that prepare their images differently (another size or crop) show
  different pixels, and are not compared.
- The values of an image are kept in the lines of its explainers, as a list in the order of all explainers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..explanation_scores.faithfulness import normalise, ranks
from ..figures.charts import matrix
from ..files import draft_of, write_json_lines
from .batch import Batch
from .config import AGREEMENT
from .folder import AGREEMENT_PICTURE, AGREEMENT_ROWS
from .models import ClassifierWithExplainers

Row = dict[str, Any]


@dataclass(frozen=True)
class _RankedMaps:
    """The maps of one classifier for one image.

    Args:
        classifier: Classifier with its explainers.
        predicted: Class that the maps are of.
        ranks: Ranks of the pixels of every map, centred and of length 1, (explainers, H·W).
    """

    classifier: ClassifierWithExplainers
    predicted: int
    ranks: Tensor


class Agreement:
    """The rank correlations of all pairs of explainers, image by image.

    Args:
        classifiers: Classifiers with their explainers, in the order in which they are observed.
    """

    def __init__(self, classifiers: Sequence[ClassifierWithExplainers]) -> None:
        self.classifiers = classifiers
        self.names = list_names(classifiers)
        self.matrices: dict[int, Tensor] = {}
        self.earlier: dict[int, list[_RankedMaps]] = {}

    def observe(self, batch: Batch, indices: Sequence[int]) -> None:
        """Compare the maps of a batch with each other, and with those of the classifiers before.

        Args:
            batch: Images of one classifier, with their heat maps.
            indices: Indices of the images.
        """
        classifier = batch.classifier
        ranked = torch.stack([rank_pixels(batch.heats[name][:, 0]) for name in classifier.names])  # (n, B, H·W)
        for position, index in enumerate(indices):
            own = _RankedMaps(classifier, int(batch.predicted[position]), ranked[:, position])
            earlier = self.earlier.setdefault(index, [])
            for other in (*earlier, own):
                self._compare(index, own, other)
            if classifier is not self.classifiers[-1]:  # nobody asks for the maps of the last one
                earlier.append(own)

    def _compare(self, index: int, own: _RankedMaps, other: _RankedMaps) -> None:
        """Correlate the maps of two classifiers, or of one with itself, unless they do not show the same."""
        count = len(self.names)
        table = self.matrices.setdefault(index, torch.full((count, count), torch.nan, dtype=torch.float64))
        if own.predicted != other.predicted or not see_the_same((own.classifier, other.classifier)):
            return
        correlations = (own.ranks.double() @ other.ranks.double().T).clamp(-1, 1)
        rows, columns = ([self.names.index(name) for name in each.classifier.names] for each in (own, other))
        table[torch.tensor(rows)[:, None], torch.tensor(columns)] = correlations
        table[torch.tensor(columns)[:, None], torch.tensor(rows)] = correlations.T

    def add_to(self, lines: list[dict[str, Any]]) -> None:
        """Add to every line the correlations of its explainer with all of them, None where there is no value."""
        for line in lines:
            values = self.matrices[line["index"]][self.names.index(line["explainer"])]
            line[AGREEMENT] = [None if math.isnan(value) else value for value in values.tolist()]


def list_names(classifiers: Sequence[ClassifierWithExplainers]) -> list[str]:
    """Return the explainers of all classifiers; each explains one of them."""
    return [name for classifier in classifiers for name in classifier.names]


def rank_pixels(heats: Tensor) -> Tensor:
    """Rank the pixels of heat maps (B, H, W), centred and scaled to length 1, (B, H·W); NaN for a uniform map.

    The result is on the CPU: it is kept until other maps of the image come, and not every device has double precision,
    without which the length of so many ranks is wrong in the sixth digit.
    """
    rows = heats.flatten(1)
    uniform = rows.amin(dim=1) == rows.amax(dim=1)
    scaled = normalise(ranks(rows).cpu().double()).float()
    return scaled.masked_fill(uniform.cpu()[:, None], torch.nan)


def see_the_same(classifiers: Sequence[ClassifierWithExplainers]) -> bool:
    """Tell whether a pixel shows the same part of a picture to all classifiers."""
    prepared = [one.classifier.preprocessing for one in classifiers]
    views = {(*each["input_size"], each["crop_pct"], each["crop_mode"]) for each in prepared}
    return len(views) == 1


def mean_agreement(
    lines: list[dict[str, Any]], classifiers: Sequence[ClassifierWithExplainers], common: Row
) -> list[Row]:
    """Average the correlations of all images into one row per explainer.

    Args:
        lines: Values of all images and explainers.
        classifiers: Classifiers with their explainers.
        common: Models, data, settings and versions, which every row repeats.
    """
    names, rows = list_names(classifiers), []
    for classifier in classifiers:
        for name in classifier.names:
            own = [line[AGREEMENT] for line in lines if line["explainer"] == name]
            row: Row = {"explainer": name, "explains": classifier.role, "correlation": {}, "compared_images": {}}
            for other, column in zip(names, zip(*own, strict=True), strict=True):
                values = torch.tensor([value for value in column if value is not None], dtype=torch.float64)
                row["correlation"][other] = float(values.mean()) if len(values) else None
                row["compared_images"][other] = len(values)
            rows.append(row | common)
    return rows


def write_agreement(folder: Path, rows: list[Row], images: int) -> None:
    """Write the rows of `mean_agreement` and the picture of their matrix.

    Args:
        folder: Folder of the benchmark.
        rows: Rows of all explainers.
        images: Number of images.
    """
    write_json_lines(folder / AGREEMENT_ROWS, rows)
    names = [row["explainer"] for row in rows]
    values = [[row["correlation"][name] for name in names] for row in rows]
    counted = f"{images} image{'' if images == 1 else 's'} of {rows[0]['data']} ({rows[0]['split']})"
    with draft_of(folder / AGREEMENT_PICTURE) as draft:
        matrix(f"Rank correlation of heat maps, mean over {counted}", names, values).save(draft)
