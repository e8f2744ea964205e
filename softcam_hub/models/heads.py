"""The two heads: features `F` (B, K, H, W) to logits (B, C) and class maps (B, C, H, W).

- SoftCAM (Djoumessi & Berens): the evidence `M' = W·F + b` of every location is averaged into the logits.
- CAPE (Chowdhury et al., CVPR 2024), eq. 3 to 8: evidence becomes probabilities `P` that sum to the prediction `p̂`. It
  is a product of two softmaxes, over classes and over locations, not one joint softmax.
- CAPE's logits are `log p̂`, so that softmax(logits) is `p̂` and cross-entropy on logits is cross-entropy on `p̂`.
- One temperature T' divides the evidence everywhere and stays at inference, as in the paper. The authors' code has
  three, and drops one of them at evaluation.
- Softmaxes are float32 at least, whatever the features are, and no (B, C, HW, HW) tensor is ever made.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EvidenceHead(nn.Module, ABC):
    """A linear classifier that can be applied at every location: `weight` (C, K) and `bias` (C) as in the vanilla head.

    Args:
        in_features: K.
        num_classes: C.
        device: of the parameters.
        dtype: of the parameters.
    """

    family: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    """The kinds of maps that this head can return; the first kind composes the prediction."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh parameters, as for a classifier that has seen nothing."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def reset(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one for `num_classes` classes."""
        like = {"device": self.weight.device, "dtype": self.weight.dtype}
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.empty(num_classes, self.in_features, **like))
        self.bias = nn.Parameter(torch.empty(num_classes, **like))
        self.reset_parameters()

    def evidence(self, features: Tensor) -> Tensor:
        """`M' = W·F + b`, in the compute dtype: (B, K, H, W) -> (B, C, H, W)."""
        return F.conv2d(features, self.weight[:, :, None, None], self.bias)

    def forward(self, features: Tensor, *, kind: str | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logits (B, C), or the pair of logits and maps (B, C, H, W) where a kind of map is named.

        Call the head as a module, `head(features, kind=kind)`. Hooks, offloading, parametrisations and wrappers such as
        PEFT's then act on the maps as they act on the logits. The kind is a keyword so that a forward pre-hook which
        replaces the features does not drop it.

        Args:
            features: Features of the backbone, (B, K, H, W).
            kind: One of `kinds`, or `evidence` for M' of any head.
        """
        evidence = self.evidence(features)
        logits = self.compose(evidence)
        return logits if kind is None else (logits, self.draw(evidence, kind))

    def maps(self, features: Tensor, classes: Tensor | None = None, kind: str | None = None) -> Tensor:
        """Return the maps of the given classes, or of all classes.

        Args:
            features: Features of the backbone, (B, K, H, W).
            classes: Class indices for each image, (B, k).
            kind: One of `kinds`. The default is the kind that composes the prediction.

        Returns:
            (B, k, H, W), or (B, C, H, W) without `classes`.
        """
        _, maps = self(features, kind=self.check_kind(kind))
        return select(maps, classes)

    @classmethod
    def check_kind(cls, kind: str | None) -> str:
        """Return the kind of map that was named, or by default the kind that composes the prediction."""
        if kind is None:
            return cls.kinds[0]
        if kind not in cls.kinds:
            raise ValueError(f"unknown map kind {kind!r} for {cls.family}: expected one of {', '.join(cls.kinds)}")
        return kind

    @abstractmethod
    def compose(self, evidence: Tensor) -> Tensor:
        """Logits (B, C) from evidence (B, C, H, W)."""

    def draw(self, evidence: Tensor, kind: str) -> Tensor:
        """Return the maps (B, C, H, W) of a kind; `cam` (eq. 2) leaves the bias out, as CAM always did."""
        if kind == "evidence":
            return evidence
        self.check_kind(kind)
        return (evidence - self.bias[:, None, None]).relu() if kind == "cam" else evidence

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.num_classes}"


class SoftCAMHead(EvidenceHead):
    """logits = mean over locations of `M'`; maps = `M'`.

    Args:
        in_features: K.
        num_classes: C.
    """

    family = "softcam"
    kinds = ("softcam", "cam")

    def forward(self, features: Tensor, *, kind: str | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits, or logits and maps; logits alone cost what the vanilla head costs: pool, multiply once."""
        if kind is None:
            return F.linear(features.mean(dim=(2, 3)), self.weight, self.bias)
        return super().forward(features, kind=kind)

    def compose(self, evidence: Tensor) -> Tensor:
        return at_least_float32(evidence).mean(dim=(2, 3))


class CAPEHead(EvidenceHead):
    """`P[c,ij] = softmax_c(M'/T')[c,ij] · softmax_ij(mean_c M'/T')[ij]`, `p̂ = Σ_ij P`, logits = log p̂.

    Args:
        in_features: K.
        num_classes: C.
        naive: every location counts the same (eq. 4), instead of by its saliency (eq. 7).
        device: of the parameters.
        dtype: of the parameters.
    """

    family = "cape"
    kinds = ("cape", "mu-cape", "cam")

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        naive: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes, device, dtype)
        self.naive = naive
        # log T', a vector: FSDP rejects parameters without dimension
        self.log_temperature = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "log_temperature" in self._parameters:  # not yet while the base class is made
            nn.init.zeros_(self.log_temperature)

    def compose(self, evidence: Tensor) -> Tensor:
        return self.log_parts(evidence).flatten(2).logsumexp(dim=2)

    def forward(self, features: Tensor, *, kind: str | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits, or logits and maps; `cape` maps and logits come from one computation of log P."""
        if kind != "cape":
            return super().forward(features, kind=kind)
        parts = self.log_parts(self.evidence(features))
        return parts.flatten(2).logsumexp(dim=2), parts.exp()

    def log_parts(self, evidence: Tensor) -> Tensor:
        """log P (B, C, H, W): the product of eq. 8 in log space."""
        scaled = at_least_float32(evidence) * (-at_least_float32(self.log_temperature)).exp()
        # torch's log_softmax over a strided dimension adds up serially on a CPU, which costs digits with many classes;
        # with the maximum taken off, the sum is at least 1 and large evidence keeps its digits
        shifted = scaled - scaled.detach().amax(dim=1, keepdim=True)
        log_sum = shifted.exp().sum(dim=1, keepdim=True).log()
        return shifted - (log_sum - self.log_saliency(scaled))

    def log_saliency(self, scaled: Tensor) -> Tensor:
        """log p(location), (B, 1, H, W): softmax over locations of the mean evidence (eq. 7), or uniform (eq. 4)."""
        mean = scaled.mean(dim=1, keepdim=True)
        if self.naive:
            mean = torch.zeros_like(mean)
        return mean.flatten(2).log_softmax(dim=2).reshape(mean.shape)

    def draw(self, evidence: Tensor, kind: str) -> Tensor:
        if kind == "mu-cape":
            evidence = at_least_float32(evidence)
            return (evidence + evidence.mean(dim=1, keepdim=True)).relu()
        return super().draw(evidence, kind)


@torch.fx.wrap  # a tracer does not know the dtype
def at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def select(maps: Tensor, classes: Tensor | None) -> Tensor:
    """The maps of `classes` (B, k) out of (B, C, H, W); all of them without `classes`."""
    if classes is None:
        return maps
    index = classes[:, :, None, None].expand(-1, -1, *maps.shape[2:])
    return maps.gather(1, index)


HEADS: dict[str, type[EvidenceHead]] = {head.family: head for head in (SoftCAMHead, CAPEHead)}
