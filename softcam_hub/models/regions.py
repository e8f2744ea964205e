"""The locations that matter to a class, as `Explanation.regions` finds them."""

from dataclasses import dataclass

from torch import Tensor

from .text import format_share


@dataclass(frozen=True)
class Regions:
    """The locations that matter to a class, and the share of its probability that they carry.

        regions = cape.explain("eye.jpg").regions(threshold=0.05)
        regions.describe()  # "5 of 49 locations carry 91.2% of this class's 87.0%"

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
        return f"{count} of {total} locations carry {format_share(share)} of this class's {format_share(probability)}"
