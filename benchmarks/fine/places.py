"""Measure where the cells of the study's networks look, and draw their maps there.

A map is drawn at the one place that fits it best. Beside that, it is drawn as squares that fill the image, and with the
evidence of every depth at a place of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from softcam_hub.models.alignment import Alignment, Grid
from softcam_hub.models.flip_correlation import FEWEST_CELLS, correlate_flips, find_offset

from .network import ScaledEvidence, add, enlarge


@dataclass(frozen=True)
class Places:
    """Where the cells of a network look, as distances (down, right) from their squares in cells of their own.

    Args:
        whole: Distance of the cells of the map.
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
    count, steps = len(network.indices) + 1, 2 ** len(network.indices)

    def smooth(terms: list[Tensor]) -> Tensor:
        """Return what is drawn, and smooth the steps that coarse evidence makes in it."""
        maps = network.compose(terms)[1].log() if network.variant.cape else add(terms)
        return F.avg_pool2d(maps, steps, stride=1)

    def take(depth: int) -> Callable[[list[Tensor]], Tensor]:
        return lambda terms: terms[depth]

    depths = [_find_distance(network, images, side, take(depth)) for depth in range(count)]
    whole = _find_distance(network, images, side, smooth, steps)
    return Places((whole[0] * steps, whole[1] * steps), depths)


def _find_distance(
    network: ScaledEvidence, images: Tensor, side: int, choose: Callable[[list[Tensor]], Tensor], unit: int = 1
) -> tuple[float, float]:
    """Find how far the cells of maps look from their squares, (down, right) in units of cells.

    Where a map has too few cells to tell, images are enlarged; the distance is the same in cells.

    Args:
        network: Network in evaluation mode.
        images: Images (B, 3, H, W).
        side: Side of the images that the network sees.
        choose: Function from the evidence of every depth to the maps.
        unit: Number of cells in which the distance is counted.
    """
    while choose(network.terms(enlarge(images[:1], side))).shape[-1] < FEWEST_CELLS:
        side *= 2
    found = []
    for axis in (2, 3):
        pair = []
        for turned in (False, True):
            parts = [enlarge(part.flip(axis) if turned else part, side) for part in images.split(8)]
            maps = torch.cat([choose(network.terms(part)) for part in parts]).double()
            maps = maps.flip(axis) if turned else maps
            if not network.variant.cape:  # what all classes share says how much a place counts in CAPE
                maps = maps - maps.mean(dim=1, keepdim=True)
            pair.append(maps.mT if axis == 2 else maps)
        distance = float(find_offset(correlate_flips(pair[0], pair[1], unit).mean(dim=0)))
        found.append(0.0 if math.isnan(distance) else distance)  # nothing has been learnt from this depth
    return found[0], found[1]
