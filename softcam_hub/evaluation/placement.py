"""Measure attention placement on a data set: the share of each class's probability on named regions.

CAPE's maps are probabilities, so a region's cells add up to the part of the prediction that was decided
there. This is the attention placement of the CAPE paper (supplement, Table 6).

- A cell that a region covers in part counts for it by area, as if every point of the cell carried an equal
  share.
- Where the places at which cells look were measured, a cell reaches half way to its neighbours, and the
  outermost cells reach the border of the image. Otherwise cells are squares that fill the image.
- Everything that no region covers is `elsewhere`, so that the shares of a class add up to 1.
- Compare a share with the area of its region: they are equal for a map that is spread evenly over the image.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..figures.charts import stacked_bars
from ..models.alignment import Grid
from ..models.classes import distinct_names
from ..models.explanation import Explanation
from .report import markdown

ELSEWHERE = "elsewhere"


class Placement:
    """Find out which regions of the images the probability of each class comes from, over a whole data set.

        placement = softcam_hub.Placement(regions=["lesion"], classes=["healthy", "ill"])
        for images, masks in batches:                                # masks (B, 1, H, W), true on the lesion
            placement.add(model.explain(images, top_k=1), masks)     # top_k=1: the predicted class of each image
        print(placement.table())  # a row for each class: percent on the lesion, and percent elsewhere

    The maps must add up to probabilities, as those of CAPE do: P[c,ij] at class c and cell ij. The share of a
    region is Σ_ij P[c,ij]·(part of cell ij that the region covers) / Σ_ij P[c,ij], and `elsewhere` takes the rest.
    Compare a share with the area of its region, in the last row: a map that is spread evenly over the image gives the
    same number. With measured places, the outermost cells are larger or smaller than the others, so that a map with the
    same probability in every cell comes near this number only.

    A class's row is the mean over the images in which it was explained: with `top_k=1` those in which it was
    predicted, with `classes=labels` those of that label, with `top_k=C` all of them.

    Args:
        regions: Names of the regions, in the order of the masks.
        classes: Names of the classes, or a mapping from class index to name.

    Chowdhury et al., "CAPE: CAM as a Probabilistic Ensemble for Enhanced DNN Interpretation", CVPR 2024, Table 6 of the
    supplement.
    """

    def __init__(self, regions: Sequence[str], classes: Sequence[str] | Mapping[int, str]) -> None:
        if isinstance(regions, str) or not regions or len({*regions, ELSEWHERE}) != len(regions) + 1:
            raise ValueError(f"regions must be a list of different names, none of them {ELSEWHERE!r}, got {regions!r}")
        self.regions = (*regions, ELSEWHERE)
        self.classes = distinct_names(classes if isinstance(classes, Mapping) else dict(enumerate(classes)))
        known = max(self.classes, default=-1) + 1
        self._sums = torch.zeros(known, len(self.regions), dtype=torch.float64)
        self._counts = torch.zeros(known, dtype=torch.int64)
        self._areas, self._images = torch.zeros(len(self.regions), dtype=torch.float64), 0

    def add(self, explanation: Explanation, masks: Tensor) -> None:
        """Add a batch.

        Args:
            explanation: Maps of any classes that add up to probabilities, such as `cape`.
            masks: Masks (B, R, H, W), true on each region; the regions of an image may not overlap.
        """
        shares, classes = region_shares(explanation, masks).flatten(0, 1), explanation.classes.flatten().cpu()
        if shares.shape[1] != len(self.regions):
            wanted = f"{len(self.regions) - 1} regions ({', '.join(self.regions[:-1])})"
            raise ValueError(f"expected masks of {wanted}, got {shares.shape[1] - 1} in {tuple(masks.shape)}")
        unnamed = sorted(set(classes.tolist()) - set(self.classes))
        if unnamed:
            raise ValueError(f"class {unnamed[0]} has no name among the {len(self.classes)} given: name all classes")
        seen = shares.isfinite().all(dim=1)
        self._sums.index_add_(0, classes[seen], shares[seen])
        self._counts.index_add_(0, classes[seen], torch.ones_like(classes[seen]))
        self._areas += with_elsewhere(masks).mean(dim=(2, 3)).sum(dim=0)
        self._images += len(masks)

    def counts(self) -> dict[str, int]:
        """Return the number of images in which each class was explained; an all-zero map does not count."""
        counts = {name: int(self._counts[index]) for index, name in self.classes.items()}
        return {name: count for name, count in counts.items() if count}

    def shares(self) -> dict[str, dict[str, float]]:
        """Return the mean share of each explained class's probability on each region: class -> region -> share."""
        means = self._sums / self._counts[:, None].clamp_min(1)
        counted = self.counts()
        named = {name: means[index].tolist() for index, name in self.classes.items() if name in counted}
        return {name: dict(zip(self.regions, mean, strict=True)) for name, mean in named.items()}

    def areas(self) -> dict[str, float]:
        """Return the mean share of the image's area of each region, which a constant map would give it, too."""
        return dict(zip(self.regions, (self._areas / max(1, self._images)).tolist(), strict=True))

    def table(self) -> str:
        """Format a Markdown table with a row for each explained class, and a row with the areas of the regions."""
        counts = self.counts()
        rows = [(name, shares, counts[name]) for name, shares in self.shares().items()]
        rows.append(("*area of the region*", self.areas(), self._images))
        body = [[name, *(f"{share:.1%}" for share in shares.values()), str(count)] for name, shares, count in rows]
        return markdown(["class", *self.regions, "images"], body)

    def chart(self, most: int = 30) -> Image.Image:
        """Draw the table as stacked bars; of more than `most` classes, those explained most often."""
        counts, shares = self.counts(), self.shares()
        often = sorted(counts, key=lambda name: -counts[name])[:most]
        bars = {name: parts for name, parts in shares.items() if name in often}
        title = "share of the class's probability" + f" ({most} of {len(shares)} classes)" * (len(shares) > most)
        return stacked_bars(title, {**bars, "area of the region": self.areas()})


def region_shares(explanation: Explanation, masks: Tensor) -> Tensor:
    """Compute the share of each class's probability on each region, (B, k, R + 1), the last being elsewhere.

    The share is Σ_ij P[c,ij]·area(r,ij) / p̂[c] for class c, region r and cells ij.

    Args:
        explanation: Maps (B, k, h, w) that add up to probabilities, such as `cape`.
        masks: Masks (B, R, H, W), true on each region.

    Returns:
        Shares that are 1 together for each class of each image, in float64; NaN where a map is all zero.
    """
    explanation.check_probabilities("placement adds up")
    maps = explanation.maps.detach().cpu().double()
    if len(maps) != len(masks):
        raise ValueError(f"expected masks for the {len(maps)} explained images, got {len(masks)}")
    parts = areas_in_cells(with_elsewhere(masks), explanation.layout())
    return torch.einsum("bkhw,brhw->bkr", maps, parts) / maps.sum(dim=(2, 3))[..., None]


def with_elsewhere(masks: Tensor) -> Tensor:
    """Add a mask of what no region covers: (B, R, H, W) -> (B, R + 1, H, W), in float64."""
    if masks.ndim != 4 or not masks.numel():
        raise ValueError(f"expected masks (B, R, H, W), one for each region of each image, got {tuple(masks.shape)}")
    if masks.dtype != torch.bool and not ((masks == 0) | (masks == 1)).all():
        raise ValueError(f"masks must be boolean or hold only 0 and 1, got values up to {float(masks.max()):.3g}")
    masks = masks.detach().cpu().double()
    covered = masks.sum(dim=1, keepdim=True)
    twice = (covered > 1).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if twice:
        raise ValueError(f"regions overlap in image {twice[0]} of the batch: give every pixel to one region at most")
    return torch.cat([masks, 1 - covered], dim=1)


def areas_in_cells(masks: Tensor, grid: Grid) -> Tensor:
    """Compute the fraction of every cell that a mask (B, R, H, W) of any size covers, (B, R, h, w).

    Args:
        masks: Masks of the regions.
        grid: Places of the cells in the image.
    """
    if not grid.is_aligned:  # in units of a cell, whose borders are whole numbers without rounding
        grid = Grid(grid.cells, grid.cells)
    rows, columns = (_overlaps(grid.edges(axis), grid.image_size[axis], masks.shape[axis - 2]) for axis in (0, 1))
    return rows @ masks.double() @ columns.mT


def _overlaps(edges: Tensor, length: int, pixels: int) -> Tensor:
    """Compute the fraction of every cell of a side that each of its pixels covers, (cells, pixels).

    Args:
        edges: Borders of the cells, (cells + 1,), from 0 to `length`.
        length: Length of the side in the unit of `edges`.
        pixels: Number of pixels of the side.
    """
    starts, ends, fine = edges[:-1, None], edges[1:, None], torch.arange(pixels, dtype=torch.float64)
    low, high = torch.maximum(starts * pixels, fine * length), torch.minimum(ends * pixels, (fine + 1) * length)
    covered = (high - low).clamp_min(0) / (pixels * (ends - starts)).clamp_min(torch.finfo(torch.float64).tiny)
    # a cell that looks beyond the border has no area, and the pixel at the border has all of it
    nearest = F.one_hot((edges[:-1] * pixels / length).long().clamp(0, pixels - 1), pixels).double()
    return torch.where(ends > starts, covered, nearest)
