"""Two heads of another package, as a user would write them. Importing this module registers them."""

from torch import Tensor

from softcam_hub import CardText, EvidenceHead, MapKind, register_head


@register_head
class LogSumExpHead(EvidenceHead):
    """Pool evidence with log-sum-exp; a map divides the class probability among the locations that made the logit."""

    family = "lse"
    title = "Log-sum-exp"
    map_kinds = (MapKind("lse", "LSE", composition="sum"),)
    multi_label = False  # the maps share out a softmax
    card = CardText(meaning="A cell holds its share of the probability: a log-sum-exp of the evidence has one.")

    def compose(self, evidence: Tensor) -> Tensor:
        return evidence.float().flatten(2).logsumexp(dim=2)

    def draw(self, evidence: Tensor, kind: str) -> Tensor:
        if kind != "lse":
            return super().draw(evidence, kind)
        shares = evidence.float().flatten(2).softmax(dim=2).view_as(evidence)
        return self.compose(evidence).softmax(dim=1)[:, :, None, None] * shares


@register_head
class ScaledHead(EvidenceHead):
    """Average evidence that is multiplied by a number; the maps are signed, and large values cost."""

    family = "scaled"
    title = "Scaled evidence"
    map_kinds = (MapKind("scaled", composition="mean", signed=True),)

    def __init__(self, in_features: int, num_classes: int, factor: float = 2.0, **placement: object) -> None:
        super().__init__(in_features, num_classes, **placement)
        self.factor = factor

    def compose(self, evidence: Tensor) -> Tensor:
        return self.factor * evidence.float().mean(dim=(2, 3))

    def draw(self, evidence: Tensor, kind: str) -> Tensor:
        return self.factor * evidence.float() if kind == "scaled" else super().draw(evidence, kind)

    @staticmethod
    def penalty(maps: Tensor) -> Tensor:
        return 0.01 * maps.abs().mean()
