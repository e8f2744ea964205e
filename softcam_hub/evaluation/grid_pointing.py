"""Play the grid pointing game: mosaics of images of four classes, and the share of each map in its own cell."""

import heapq
from collections import deque
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..explanation_scores.localization import grid_pointing_game, mosaics
from ..models.alignment import sides_of
from .config import GRID
from .measure import Values
from .models import ClassifierWithExplainers


def grid_pointing(classifier: ClassifierWithExplainers, images: Tensor, labels: Tensor) -> Values:
    """Play the grid pointing game on the mosaic of four images of different classes.

    The value is the share of each class's map of the mosaic that lies in its cell, averaged over the four
    classes, (1,) by explainer. A mosaic is as large as one image, so that it fits a model of fixed input
    size.

    Args:
        classifier: Classifier with its explainers.
        images: Images, (4, 3, H, W).
        labels: Classes of the images, (4,).
    """
    pictures, classes = mosaics(images, labels)
    size = (images.shape[2] // 2 * 2, images.shape[3] // 2 * 2)
    small = F.interpolate(pictures, size=images.shape[-2:], mode="area")
    maps = classifier.maps(classifier.names, classifier.explained.record(small), classes)
    heats = {name: classifier.heat(name, drawn, sides_of(small), size) for name, drawn in maps.items()}
    return {name: {GRID: grid_pointing_game(drawn).mean(dim=1)} for name, drawn in heats.items()}


def choose_quartets(labels: Sequence[int]) -> list[list[int]]:
    """Choose as many quartets of images of four different classes as possible, whatever the order of labels.

    Every quartet consists of the next image of the four classes of which most images are left.
    """
    waiting: dict[int, deque[int]] = {}
    for index, label in enumerate(labels):
        waiting.setdefault(label, deque()).append(index)
    quartets = []
    while True:
        largest = [indices for indices in heapq.nlargest(4, waiting.values(), key=len) if indices]
        if len(largest) < 4:
            return quartets
        quartets.append(sorted(indices.popleft() for indices in largest))
