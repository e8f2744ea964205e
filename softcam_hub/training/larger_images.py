"""Teach maps by those of larger images: the same network, trained before, sees small things in a larger image.

- The teacher is a frozen copy of the initial model. It belongs to the run and not to the network: no checkpoint and no
  result holds it, and a run that is resumed makes it again.
- Maps learn where evidence lies and not how much of it there is. Means are left out, so that logits learn from labels.
"""

import copy
import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.modeling import EvidenceForImageClassification


class LargerImages:
    """The maps of a frozen copy of a model for larger images.

    Args:
        model: Model as it is before training.
        size: Longer side of the larger images in pixels.
    """

    def __init__(self, model: EvidenceForImageClassification, size: int) -> None:
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.size = size
        digest = hashlib.sha256()
        for name, tensor in sorted(self.teacher.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        self.digest = digest.hexdigest()

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """Return the evidence (B, C, H, W) for images that are enlarged, as they come to the network in training."""
        height, width = (round(side * self.size / max(images.shape[-2:])) for side in images.shape[-2:])
        larger = F.interpolate(images, size=(height, width), mode="bicubic", align_corners=False)
        _, evidence = self.teacher.head(self.teacher.forward_features(larger), kind="evidence")
        return evidence


def difference_of_maps(maps: Tensor, target: Tensor) -> Tensor:
    """Return the mean square difference of maps without their means, relative to the variance of the target.

    Both are means over the batch, so that images with little evidence count little.

    Args:
        maps: Maps, (B, C, H, W).
        target: Maps (B, C, H', W') of larger images, of which the mean over each cell of `maps` counts.
    """
    target = F.interpolate(target.float(), size=maps.shape[-2:], mode="area")
    ours, target = (values - values.mean(dim=(2, 3), keepdim=True) for values in (maps.float(), target))
    return (ours - target).square().mean() / target.square().mean().clamp_min(1e-12)
