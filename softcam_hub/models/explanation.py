"""What a classifier shows for its prediction: one map per explained class, at the resolution of the evidence.

CAPE's maps are probabilities, so they can be added up: over all locations they give the prediction, over a region they
give that region's share of it, and the difference of two classes' maps gives the difference of their probabilities.
SoftCAM's maps are signed evidence whose mean is the logit. The other kinds only rank locations.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import at_least_float32, describe_kind, native_kinds
from .map_kind import MapKind


@dataclass(frozen=True)
class Regions:
    """The locations that matter to a class, and the share of its probability that they carry.

    Args:
        mask: Boolean (B, k, H, W), true at the locations.
        share: Part of the class probability that falls on the locations, (B, k) in [0, 1].
        probabilities: Class probabilities, (B, k).
    """

    mask: Tensor
    share: Tensor
    probabilities: Tensor

    def describe(self, image: int = 0, rank: int = 0) -> str:
        """Describe one class of one image in a sentence.

        Args:
            image: Index of the image in the batch.
            rank: Index of the class among those explained for the image.
        """
        count, total = int(self.mask[image, rank].sum()), self.mask[image, rank].numel()
        share, probability = float(self.share[image, rank]), float(self.probabilities[image, rank])
        return f"{count} of {total} locations carry {share:.1%} of this class's {probability:.1%}"


@dataclass(frozen=True)
class Explanation:
    """Maps of k classes for each of B images.

    Args:
        maps: Maps (B, k, H, W) at their own resolution.
        classes: Class index of each map, (B, k).
        probabilities: Predicted probability of each class, (B, k).
        kind: Name of the map kind, such as `softcam`, `cape`, `mu-cape` or `cam`, or of a post-hoc method.
    """

    maps: Tensor
    classes: Tensor
    probabilities: Tensor
    kind: str

    @property
    def map_kind(self) -> MapKind:
        """What the maps mean: whether they are signed, and how they make up the prediction."""
        return describe_kind(self.kind)

    def heatmaps(self, size: int | tuple[int, int]) -> Tensor:
        """Make heat maps, φ of the papers: positive part, upsampled, then min-max scaled to [0, 1].

        Args:
            size: Side, or height and width, of the result; usually the image's.

        Returns:
            (B, k, *size); all zero where a map has no contrast.
        """
        size = (size, size) if isinstance(size, int) else tuple(size)
        positive = at_least_float32(self.maps).relu()
        large = F.interpolate(positive, size=size, mode="bilinear", align_corners=False)
        low, high = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
        return torch.where(high > low, (large - low) / (high - low).clamp_min(torch.finfo(large.dtype).tiny), 0.0)

    def difference(self, a: int | None = None, b: int | None = None) -> Tensor:
        """Subtract the map of class b from that of class a: signed, (B, H, W).

        For `cape` maps the result sums to the difference of the two probabilities.

        Args:
            a: Class index, explained for every image. The default is the first explained class.
            b: Class index, explained for every image. The default is the second explained class.
        """
        return self._map_of(a, rank=0) - self._map_of(b, rank=1)

    def regions(self, threshold: float | None = None) -> Regions:
        """Find the locations above a fraction of each map's maximum, and the share of the probability they carry.

        Args:
            threshold: Fraction of the maximum, in [0, 1). The default is that of the map kind: 0.05 for `cape`, as in
                the paper.
        """
        self.check_probabilities("regions() adds up", "rank locations with heatmaps()")
        threshold = self.map_kind.threshold if threshold is None else threshold
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be a fraction of the maximum in [0, 1), got {threshold}")
        mask = self.maps > threshold * self.maps.amax(dim=(2, 3), keepdim=True)
        total = self.maps.sum(dim=(2, 3))
        share = (self.maps * mask).sum(dim=(2, 3)) / total.clamp_min(torch.finfo(total.dtype).tiny)
        return Regions(mask, share, self.probabilities)

    def check_probabilities(self, purpose: str, alternative: str = "") -> None:
        """Raise ValueError unless the maps are probabilities that add up to the prediction.

        Args:
            purpose: Beginning of the message, such as "regions() adds up".
            alternative: End of the message: an advice for other maps, such as "draw the maps with per_class()".
        """
        if self.map_kind.sums_to_probability:
            return
        families = {
            name: head.family for name, head in native_kinds().items() if describe_kind(name).sums_to_probability
        }
        name = next(iter(families))
        hint = f"Use a {families[name]}_* model with kind={name!r}" + (alternative and f", or {alternative}")
        raise ValueError(
            f"{purpose} probabilities, and only {' and '.join(map(repr, families))} maps hold probabilities: this "
            f"explanation is {self.kind!r}. {hint}"
        )

    def _map_of(self, index: int | None, rank: int) -> Tensor:
        if index is None:
            if self.maps.shape[1] <= rank:
                raise ValueError("difference() needs two explained classes: call explain(..., top_k=2) or name classes")
            return self.maps[:, rank]
        matches = self.classes == index
        missing = (~matches.any(dim=1)).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"class {index} is not explained for image {missing[0]}, which has classes "
                f"{self.classes[missing[0]].tolist()}: name it in explain(..., classes=...)"
            )
        return self.maps[torch.arange(len(self.maps), device=self.maps.device), matches.int().argmax(dim=1)]
