"""Hold the images of a batch with what all explainers of a classifier need, and spread values of some images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models.alignment import sides_of
from .models import ClassifierWithExplainers


class Batch:
    """Images of one classifier, with what all of its explainers need.

    Args:
        classifier: Classifier with its explainers.
        images: Images, (B, 3, H, W).
        labels: Class indices (B,), or several labels per image (B, C).
        masks: Annotations (B, H, W), some of which may be empty; None for data without annotations.
    """

    def __init__(
        self, classifier: ClassifierWithExplainers, images: Tensor, labels: Tensor, masks: Tensor | None = None
    ) -> None:
        self.classifier, self.images, self.labels, self.masks = classifier, images, labels, masks
        self.size = sides_of(images)
        activations = classifier.explained.record(images)
        self.logits = activations.logits.detach().float()
        self.probabilities = classifier.probabilities(activations.logits)
        self.top = self.probabilities.topk(min(2, self.probabilities.shape[1]), dim=1).indices
        classes = self.top if labels.ndim == 2 else torch.cat([self.top, labels[:, None]], dim=1)
        self.classes = classes  # (B, 2 or 3): the classes of the maps, in their order
        self.maps = classifier.maps(classifier.names, activations, classes)
        self.heats = {name: self.heat(name, maps) for name, maps in self.maps.items()}  # (B, 2 or 3, H, W)
        self.predicted = self.top[:, 0]
        self.true_classes = self.predicted if labels.ndim == 2 else labels  # see `of_label`
        self.confidence = self.of_predicted(self.probabilities)
        every = torch.ones(len(images), dtype=torch.bool, device=images.device)
        self.annotated = every if masks is None else masks.flatten(1).any(dim=1)

    def of_predicted(self, values: Tensor) -> Tensor:
        """Select the value of the predicted class from values (B, C)."""
        return values.gather(1, self.predicted[:, None])[:, 0]

    def of_label(self, maps: Tensor) -> Tensor:
        """Select the map (B, h, w) of the true label, or of the predicted class of multi-label data.

        Args:
            maps: Maps or heat maps of this batch, (B, 2 or 3, h, w).
        """
        return maps[:, -1] if maps.shape[1] > self.top.shape[1] else maps[:, 0]

    def heat(self, name: str, maps: Tensor) -> Tensor:
        """Make heat maps of the size of the images from the maps (..., h, w) of an explainer."""
        return self.classifier.heat(name, maps, self.size)

    def enlarge(self, name: str, maps: Tensor) -> Tensor:
        """Upsample signed maps (..., h, w) of an explainer to the size of the images, with their sign and unit."""
        return self.classifier.enlarge(name, maps, self.size)


def for_some(some: Tensor, function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Compute the values of some images, (B,) or (B, n), and NaN for the others.

    Args:
        some: Images that have a value, (B,) of booleans.
        function: Function that returns a value for each of these images.
        args: Arguments of the function.
        options: Further arguments of the function.
    """
    if not some.any():
        return torch.full((len(some),), torch.nan, device=some.device)
    values = function(*args, **options)
    spread = values.new_full((len(some), *values.shape[1:]), torch.nan)
    spread[some] = values
    return spread
