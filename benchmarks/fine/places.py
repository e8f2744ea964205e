"""Measure where the cells of the study's networks look, and draw their maps there.

A map is drawn at the place of its finest depth, as softcam_hub draws it. Beside that, it is drawn as squares that fill
the image, and with the evidence of every depth at a place of its own.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from softcam_hub.models.alignment import Alignment, Grid
from softcam_hub.models.flip_correlation import FEWEST_CELLS, correlate_flips, find_offset

from .network import ScaledEvidence, enlarge


@dataclass(frozen=True)
class Places:
    """Where the cells of a network look, as distances (down, right) from their squares in cells of their own.

    Args:
        whole: Distance at which the cells of a map are drawn.
        depths: Distances of the evidence of every depth, the finest first.
    """

    whole: tuple[float, float]
    depths: list[tuple[float, float]]

    def draw(self, maps: Tensor, side: int, size: tuple[int, int]) -> Tensor:
        """Draw maps (B, k, h, w) where their cells look, (B, k, *size).

        Args:
            maps: Maps of the network.
            side: Side of the images that it saw.
            size: Height and width of the picture.
        """
        return _grid(maps, self.whole, side).upsample(maps, size)

    def draw_depths(self, terms: list[Tensor], side: int, size: tuple[int, int]) -> Tensor:
        """Draw the evidence of every depth where its own cells look, and add the pictures, (B, k, *size).

        Args:
            terms: Evidence (B, k, h, w) of every depth, the finest first.
            side: Side of the images that the network saw.
            size: Height and width of the picture.
        """
        parts = zip(terms, self.depths, strict=True)
        return torch.stack([_grid(term, distance, side).upsample(term, size) for term, distance in parts]).sum(dim=0)


def draw_squares(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw maps (B, k, h, w) as squares that fill the image, (B, k, *size)."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _grid(maps: Tensor, distance: tuple[float, float], side: int) -> Grid:
    """Lay cells out at a distance from their squares."""
    cells, sides = (maps.shape[-2], maps.shape[-1]), (side, side)
    steps = (side / cells[0], side / cells[1])
    start = ((0.5 + distance[0]) * steps[0], (0.5 + distance[1]) * steps[1])
    return Grid(sides, cells, Alignment(start, steps, sides))


@torch.no_grad()
def find_places(network: ScaledEvidence, images: Tensor, side: int) -> Places:
    """Measure where the cells of a network look, as `softcam_hub.measure_alignment` does.

    Args:
        network: Trained network.
        images: Images (B, 3, H, W) that the network was not trained on.
        side: Side of the images that the network sees.
    """
    network.eval()
    depths = [_find_distance(network, images, side, depth) for depth in range(len(network.indices) + 1)]
    return Places(depths[0], depths)


def _find_distance(network: ScaledEvidence, images: Tensor, side: int, depth: int) -> tuple[float, float]:
    """Find how far the cells of a depth look from their squares, (down, right) in cells.

    Where its evidence has too few cells to tell, images are enlarged; the distance is the same in cells.

    Args:
        network: Network in evaluation mode.
        images: Images (B, 3, H, W).
        side: Side of the images that the network sees.
        depth: Number of the depth, from 0 for the finest.
    """
    while network.terms(enlarge(images[:1], side))[depth].shape[-1] < FEWEST_CELLS:
        side *= 2
    found = []
    for axis in (2, 3):
        pair = []
        for turned in (False, True):
            parts = [enlarge(part.flip(axis) if turned else part, side) for part in images.split(8)]
            maps = torch.cat([network.terms(part)[depth] for part in parts]).double()
            maps = maps.flip(axis) if turned else maps
            contrast = maps - maps.mean(dim=1, keepdim=True)
            tells_classes_apart = contrast.abs().max() > 1e-6 * maps.abs().max()  # CAPE's saliency does not
            maps = contrast if tells_classes_apart else maps
            pair.append(maps.mT if axis == 2 else maps)
        found.append(float(find_offset(correlate_flips(pair[0], pair[1]).mean(dim=0))))
    return found[0], found[1]
