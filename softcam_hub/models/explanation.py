"""What a classifier shows for its prediction: one map per explained class, at the resolution of the evidence.

CAPE's maps are probabilities, so they can be added up: over all locations they give the prediction, over a region they
give that region's share of it, and the difference of two classes' maps gives the difference of their probabilities.
SoftCAM's maps are signed evidence whose mean is the logit. The other kinds only rank locations.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Regions:
    """The locations that matter to a class, and how much of its probability they carry.

    Args:
        mask: (B, k, H, W), true at the locations.
        share: (B, k), the part of the class's probability that falls on them, in [0, 1].
        probabilities: (B, k), the class probabilities themselves.
    """

    mask: Tensor
    share: Tensor
    probabilities: Tensor

    def describe(self, image: int = 0, rank: int = 0) -> str:
        """One sentence on one class of one image."""
        count, total = int(self.mask[image, rank].sum()), self.mask[image, rank].numel()
        share, probability = float(self.share[image, rank]), float(self.probabilities[image, rank])
        return f"{count} of {total} locations carry {share:.1%} of this class's {probability:.1%}"


@dataclass(frozen=True)
class Explanation:
    """Maps of k classes for each of B images.

    Args:
        maps: (B, k, H, W), at their own resolution.
        classes: (B, k), the class that each map speaks of.
        probabilities: (B, k), what the model predicts for it.
        kind: `softcam`, `cape`, `mu-cape` or `cam`.
    """

    maps: Tensor
    classes: Tensor
    probabilities: Tensor
    kind: str

    def heatmaps(self, size: int | tuple[int, int]) -> Tensor:
        """φ of the papers: positive part, upsampled, then min-max scaled to [0, 1] for display.

        Args:
            size: height and width of the result, usually the image's.

        Returns:
            (B, k, *size); all zero where a map has no contrast.
        """
        size = (size, size) if isinstance(size, int) else tuple(size)
        positive = self.maps.to(torch.promote_types(self.maps.dtype, torch.float32)).relu()
        large = F.interpolate(positive, size=size, mode="bilinear", align_corners=False)
        low, high = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
        return torch.where(high > low, (large - low) / (high - low).clamp_min(torch.finfo(large.dtype).tiny), 0.0)

    def difference(self, a: int | None = None, b: int | None = None) -> Tensor:
        """Class a minus class b, signed, (B, H, W); for `cape` it sums to the difference of their probabilities.

        Args:
            a: class index, among those explained for every image; the first explained class by default.
            b: likewise; the second explained class by default.
        """
        return self._map_of(a, rank=0) - self._map_of(b, rank=1)

    def regions(self, threshold: float = 0.05) -> Regions:
        """The locations above `threshold` times each map's maximum, and the share of the probability they carry.

        Args:
            threshold: fraction of the maximum, in [0, 1); the CAPE paper takes 0.05.
        """
        if self.kind != "cape":
            raise ValueError(
                f"regions() adds up probabilities, and only 'cape' maps hold any: this explanation is {self.kind!r}; "
                "use a cape_* model with kind='cape', or heatmaps() to rank locations"
            )
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be a fraction of the maximum in [0, 1), got {threshold}")
        mask = self.maps > threshold * self.maps.amax(dim=(2, 3), keepdim=True)
        total = self.maps.sum(dim=(2, 3))
        share = (self.maps * mask).sum(dim=(2, 3)) / total.clamp_min(torch.finfo(total.dtype).tiny)
        return Regions(mask, share, self.probabilities)

    def _map_of(self, index: int | None, rank: int) -> Tensor:
        if index is None:
            if self.maps.shape[1] <= rank:
                raise ValueError("difference() needs two explained classes: call explain(..., top_k=2) or name classes")
            return self.maps[:, rank]
        found = self.classes == index
        missing = (~found.any(dim=1)).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"class {index} is not explained for image {missing[0]}, which has classes "
                f"{self.classes[missing[0]].tolist()}: name it in explain(..., classes=...)"
            )
        return self.maps[torch.arange(len(self.maps), device=self.maps.device), found.int().argmax(dim=1)]
