"""What the maps of a head mean, for everything that shows, adds up or scores them.

- A *map kind* is one way in which a head draws its evidence, such as `cape` or `mu-cape`.
- Nothing outside this folder asks which family a model belongs to. It asks the head, the map kind or the explanation.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

KindName: TypeAlias = Literal["softcam", "cape", "mu-cape", "cam"] | str
"""Name of a map kind. Editors complete those of this package, and a registered head brings names of its own."""

Composition = Literal["sum", "mean"]
"""`sum`: the cells of a map add up to the class probability. `mean`: they average to the logit."""


@dataclass(frozen=True)
class MapKind:
    """One kind of maps that a head draws: its name, and what its values mean.

        softcam_hub.MapKind("lse", title="LSE", composition="sum")  # the cells add up to the class probability

    Args:
        name: Name that `explain(..., kind=name)` and the explainers take, such as `mu-cape`.
        title: Name for readers, such as `μ-CAPE`. The default is `name`.
        composition: Rule by which cells make up the prediction, or None for maps that only rank locations.
        signed: A location may speak against the class.
        caption: Sentence for figures. The default follows from `composition` and `signed`.
        introduction: Sentence for readers who meet such maps for the first time, as on the demo page. The default is
            the one for figures.
        threshold: Default fraction of a map's maximum above which `Explanation.regions` counts a location.
        native: Only this head draws such maps. Post-hoc methods draw the others too, as they draw `cam`.
    """

    name: str
    title: str = ""
    composition: Composition | None = None
    signed: bool = False
    caption: str = ""
    introduction: str = ""
    threshold: float = 0.05
    native: bool = True

    def __post_init__(self) -> None:
        if self.composition not in (None, "sum", "mean"):
            raise ValueError(f"composition of {self.name!r} maps must be 'sum', 'mean' or None: {self.composition!r}")
        if self.signed and self.composition == "sum":
            raise ValueError(f"{self.name!r} maps cannot be signed: shares of a probability are never negative")
        if not self.title:
            object.__setattr__(self, "title", self.name)

    @property
    def sums_to_probability(self) -> bool:
        """Whether the cells of a map add up to the probability of its class."""
        return self.composition == "sum"

    @property
    def averages_to_logit(self) -> bool:
        """Whether the mean of a map is the logit of its class."""
        return self.composition == "mean"

    @property
    def statement(self) -> str:
        """What may be said of the values of a map, as a sentence or two."""
        if self.sums_to_probability:
            return "The cells of a map add up to the probability of its class."
        sentences = ["The larger the value, the more the location matters to the class."]
        if self.signed:
            sentences = ["A location with a positive value speaks for the class, one with a negative value against it."]
        if self.averages_to_logit:
            sentences.append("The mean of a map is the logit of its class.")
        return " ".join(sentences)

    def compose(self, maps: Tensor) -> Tensor:
        """Return the predictions (...) that maps (..., H, W) make up: probabilities, or logits."""
        return maps.sum(dim=(-2, -1)) if self.sums_to_probability else maps.mean(dim=(-2, -1))

    def target(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """Return the one of the two that `compose` has to reproduce."""
        return probabilities if self.sums_to_probability else logits


CAM = MapKind(
    "cam",
    title="CAM",
    signed=True,
    caption="Orange speaks for the class. The bias, and what speaks against the class, are left out.",
    native=False,
)
"""Zhou et al., eq. 2: class activation maps, which any head with evidence can draw."""
