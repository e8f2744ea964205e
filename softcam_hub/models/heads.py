"""The two heads: features `F` (B, K, H, W) to logits (B, C) and class maps (B, C, H, W).

- SoftCAM (Djoumessi & Berens): the evidence `M' = W·F + b` of every location is averaged into the logits.
- CAPE (Chowdhury et al., CVPR 2024), eq. 3 to 8: evidence becomes probabilities `P` that sum to the prediction `p̂`. It
  is a product of two softmaxes, over classes and over locations, not one joint softmax.
- CAPE's logits are `log p̂`, so that softmax(logits) is `p̂` and cross-entropy on logits is cross-entropy on `p̂`.
- One temperature T' divides the evidence everywhere and stays at inference, as in the paper. The authors' code has
  three, and drops one of them at evaluation.
- Softmaxes are float32 at least, whatever the features are, and no (B, C, HW, HW) tensor is ever made.
- What a family means (its map kinds, its labels, its card) is written on its head and nowhere else.
"""

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cape_logits import CAPELogits, log_parts
from .card_text import CAPE_CARD, SOFTCAM_CARD, CardText
from .map_kind import CAM, KindName, MapKind
from .scales import FinerFeatures, add_terms, divide, lay_out, unpack

Family: TypeAlias = Literal["softcam", "cape"] | str
"""Name of a family. Editors complete those of this package, and `softcam_hub.register_head` adds others."""


HeadOutput: TypeAlias = Tensor | tuple[Tensor, Any]
"""Logits (B, C), or logits and maps."""

TERMS = "terms"
"""What `forward` of a head takes as a kind to return the evidence of every depth."""


class EvidenceHead(nn.Module, ABC):
    """A linear classifier that can be applied at every location: the base class of every head.

    `weight` (C, K) and `bias` (C) are those of the vanilla classifier. A subclass names its family and its maps in the
    class attributes, and says in `compose` how evidence becomes logits; `softcam_hub.register_head` does the rest.

    Args:
        in_features: Number K of feature channels.
        num_classes: Number C of classes.
        device: Device of the parameters.
        dtype: Data type of the parameters.
    """

    family: ClassVar[str]
    """First part of the names of the architectures: `cape` makes `cape_resnet50`. It has no underscore."""

    title: ClassVar[str]
    """Name of the family for readers, such as `CAPE`."""

    map_kinds: ClassVar[tuple[MapKind, ...]]
    """Maps that this head can draw. The first kind is the one that the prediction is made of."""

    kinds: ClassVar[tuple[str, ...]]
    """Names of `map_kinds`."""

    card: ClassVar[CardText] = CardText()
    """What a model card says of the family."""

    multi_label: ClassVar[bool] = True
    """Whether the logits can give each class a probability of its own, for several labels per image."""

    keeps_logits: ClassVar[bool] = False
    """Whether the head gives the vanilla logits when it holds the vanilla weights, so that the model is its own
    vanilla counterpart."""

    draws_single_classes: ClassVar[bool] = False
    """Whether `forward` takes `classes`, and then computes the maps of these alone. Subclasses do not inherit it."""

    reads_scales: ClassVar[bool] = True
    """Whether the head may read features of several depths. A subclass with an `evidence` or `forward` of its own says
    so itself."""

    finer: tuple[FinerFeatures, ...] = ()
    """Features with more cells that the head reads beside the last ones, the coarsest first."""
    fine_weight: nn.Parameter
    """Weight (C, channels of all `finer` features), where there are any."""

    has_temperature: ClassVar[bool] = False
    """Whether evidence is divided by a learnt temperature: a parameter `log_temperature` that weight decay spares."""
    log_temperature: nn.Parameter

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.draws_single_classes = bool(vars(cls).get("draws_single_classes"))
        computes_evidence = "evidence" in vars(cls) or "forward" in vars(cls)
        cls.reads_scales = bool(vars(cls).get("reads_scales", cls.reads_scales and not computes_evidence))
        cls.kinds = tuple(kind.name for kind in getattr(cls, "map_kinds", ()) if isinstance(kind, MapKind))

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

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Return the names of the constructor's arguments that are variants of this family, such as `naive`."""
        arguments = inspect.signature(cls.__init__).parameters
        common = inspect.signature(EvidenceHead.__init__).parameters
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return tuple(
            name for name, argument in arguments.items() if name not in common and argument.kind not in variable
        )

    @classmethod
    def check_options(cls, options: dict[str, Any]) -> None:
        """Raise ValueError for a value that is no truth value where the default of the option is one."""
        arguments = inspect.signature(cls.__init__).parameters
        for name, value in options.items():
            if isinstance(arguments[name].default, bool) and not isinstance(value, bool):
                raise ValueError(f"{name} of {cls.title} must be true or false, got {value!r}")

    def reset_parameters(self) -> None:
        """Draw fresh parameters, as for a classifier that has seen no image."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        if self.finer:
            nn.init.zeros_(self.fine_weight)

    def read_finer(self, finer: tuple[FinerFeatures, ...]) -> None:
        """Read finer features beside the last ones from now on, with weights of zero at first.

        Args:
            finer: Which features `forward_features` packs behind the last ones, see `scales.py`.
        """
        if not self.reads_scales:
            raise ValueError(
                f"scales={1 + len(finer)} is not possible: {type(self).__name__} computes evidence in its own way. If "
                "it can read packed features, say reads_scales = True in the class"
            )
        self.finer = finer
        self.fine_weight = nn.Parameter(self.weight.new_zeros(self.num_classes, sum(each.channels for each in finer)))

    def evidence(self, features: Tensor) -> Tensor:
        """Compute `M' = W·F + b` in the compute dtype: (B, K, H, W) -> (B, C, H, W).

        With finer features, the sum of the evidence of all depths, on the finest grid.
        """
        return add_terms(self.terms(features))

    def terms(self, features: Tensor, classes: Tensor | None = None) -> list[Tensor]:
        """Compute the evidence (B, C, H, W) of every depth on its own grid, the coarsest first.

        Args:
            features: Features of the backbone.
            classes: Classes (B, k) of which evidence (B, k, H, W) is computed, without the bias. The default is all
                classes, with the bias as a part of the coarsest evidence.
        """
        bias = self.bias if classes is None else None
        if not self.finer:
            return [_apply(features, self.weight, bias, classes)]
        last, *finer = unpack(features, self.in_features, self.finer)
        terms = [_apply(last, self.weight, bias, classes)]
        for values, weight, each in zip(finer, self._fine_weights(), self.finer, strict=True):
            terms.append(lay_out(_apply(values, weight, None, classes), each.ratio))
        return terms

    def _fine_weights(self) -> list[Tensor]:
        """Return the weight (C, k) of each of the finer features."""
        return divide(self.fine_weight, [each.channels for each in self.finer])

    def forward(self, features: Tensor, *, kind: KindName | None = None) -> HeadOutput:
        """Return the logits (B, C), or the pair of logits and maps (B, C, H, W) where a kind of map is named.

        Call the head as a module, `head(features, kind=kind)`. Hooks, offloading, parametrisations and wrappers such as
        PEFT's then act on the maps as they act on the logits. The kind is a keyword so that a forward pre-hook which
        replaces the features does not drop it.

        Args:
            features: Features of the backbone, (B, K, H, W).
            kind: One of `kinds`, or `evidence` for M' of any head. With `terms`, a list of the evidence of every depth
                stands in the place of the maps.
        """
        if kind == TERMS:
            terms = self.terms(features)
            return self.compose(add_terms(terms)), terms
        evidence = self.evidence(features)
        logits = self.compose(evidence)
        return logits if kind is None else (logits, self.draw(evidence, kind))

    def maps(self, features: Tensor, classes: Tensor | None = None, kind: KindName | None = None) -> Tensor:
        """Return the maps of the given classes, or of all classes.

        Args:
            features: Features of the backbone, (B, K, H, W).
            classes: Class indices for each image, (B, k).
            kind: One of `kinds`. The default is the kind that the prediction is made of.

        Returns:
            (B, k, H, W), or (B, C, H, W) without `classes`.
        """
        _, maps = self(features, kind=self.check_kind(kind))
        return select(maps, classes)

    @classmethod
    def check_kind(cls, kind: str | None) -> str:
        """Return the kind of map that was named, or by default the kind that the prediction is made of."""
        if kind is None:
            return cls.kinds[0]
        if kind not in cls.kinds:
            raise ValueError(f"unknown map kind {kind!r} for {cls.family}: expected one of {', '.join(cls.kinds)}")
        return kind

    @abstractmethod
    def compose(self, evidence: Tensor) -> Tensor:
        """Compute logits (B, C) from evidence (B, C, H, W)."""

    def draw(self, evidence: Tensor, kind: str) -> Tensor:
        """Return the maps (B, C, H, W) of a kind; `cam` (eq. 2) leaves the bias out, as CAM always did."""
        if not self._leaves_bias_out(kind):
            return evidence
        return (evidence - self.bias[:, None, None]).relu()

    def _leaves_bias_out(self, kind: str) -> bool:
        """Tell whether maps of a kind are the positive part of the evidence without its bias; refuse unknown kinds."""
        if kind != "evidence":
            self.check_kind(kind)
        return kind == CAM.name

    @property
    def is_off_the_shelf(self) -> bool:
        """Whether the head holds a vanilla classifier whose logits it does not give, and has not learnt since."""
        return False

    @staticmethod
    def penalty(maps: Tensor) -> Tensor:
        """Compute a scalar that training adds to the cross-entropy, for heads that override this method.

        Args:
            maps: Maps (B, C, H, W) of the first map kind.
        """
        return maps.new_zeros(())

    def extra_repr(self) -> str:
        """Describe the head in `print(model)`."""
        return f"{self.in_features}, {self.num_classes}"


class SoftCAMHead(EvidenceHead):
    """Average the evidence: logits = mean over locations of `M'`; maps = `M'`."""

    family = "softcam"
    title = "SoftCAM"
    map_kinds = (
        MapKind(
            "softcam",
            "SoftCAM",
            composition="mean",
            signed=True,
            introduction="SoftCAM shows the evidence of each place for the class (orange) or against it (blue); the "
            "mean over all places is the logit of the class.",
        ),
        CAM,
    )
    keeps_logits = True
    draws_single_classes = True
    reads_scales = True
    card = SOFTCAM_CARD

    def forward(self, features: Tensor, *, kind: str | None = None, classes: Tensor | None = None) -> HeadOutput:
        """Return logits, or logits and maps; logits alone cost what the vanilla head costs: pool, multiply once.

        Args:
            features: Features of the backbone, (B, K, H, W).
            kind: One of `kinds`, or `evidence`.
            classes: Classes (B, k) of which logits (B, k) and maps (B, k, H, W) are computed, with a kind.
        """
        if kind is None:
            return self._pooled_logits(features)
        if classes is None:
            return super().forward(features, kind=kind)
        terms = self.terms(features, classes)
        biases = self.bias[classes][:, :, None, None]
        evidence = add_terms(terms)
        logits = self.compose(evidence + biases)
        if kind == TERMS:
            return logits, [terms[0] + biases, *terms[1:]]
        return logits, evidence.relu() if self._leaves_bias_out(kind) else evidence + biases

    def _pooled_logits(self, features: Tensor) -> Tensor:
        """Compute logits (B, C) of pooled features."""
        if not self.finer:
            return F.linear(features.mean(dim=(2, 3)), self.weight, self.bias)
        pooled = [part.mean(dim=(2, 3)) for part in unpack(features, self.in_features, self.finer)]
        return F.linear(torch.cat(pooled, dim=1), torch.cat([self.weight, self.fine_weight], dim=1), self.bias)

    def compose(self, evidence: Tensor) -> Tensor:
        return at_least_float32(evidence).mean(dim=(2, 3))


class CAPEHead(EvidenceHead):
    """`P[c,ij] = softmax_c(M'/T')[c,ij] · softmax_ij(mean_c M'/T')[ij]`, `p̂ = Σ_ij P`, logits = log p̂.

    Args:
        in_features: Number K of feature channels.
        num_classes: Number C of classes.
        naive: Weigh all locations equally (eq. 4) instead of by their saliency (eq. 7).
        device: Device of the parameters.
        dtype: Data type of the parameters.
    """

    family = "cape"
    title = "CAPE"
    map_kinds = (
        MapKind(
            "cape",
            "CAPE",
            composition="sum",
            introduction="CAPE divides the probability of a class among the places of the picture, so that all cells "
            "of a map add up to it.",
        ),
        MapKind(
            "mu-cape",
            "μ-CAPE",
            caption="Class evidence plus its mean over the classes, where that is positive: it ranks locations.",
            introduction="μ-CAPE shows every place with evidence for a class, also evidence that several classes "
            "share: it ranks places, and adds up to nothing.",
        ),
        CAM,
    )
    multi_label = False  # the class probabilities sum to one
    has_temperature = True
    reads_scales = True
    card = CAPE_CARD

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

    @property
    def is_off_the_shelf(self) -> bool:
        """Whether the head holds a vanilla classifier as it was taken over: any update moves T' off its first value."""
        if self.naive or self.bias.is_meta:
            return False
        return not bool(self.log_temperature.any()) and bool(self.bias.any())  # a fresh head has a bias of zeros

    def compose(self, evidence: Tensor) -> Tensor:
        if _is_trained(evidence) and type(self).log_parts is CAPEHead.log_parts:
            values = at_least_float32(evidence), at_least_float32(self.log_temperature)
            logits: Tensor = CAPELogits.apply(*values, self.naive)
            return logits
        return self.log_parts(evidence).flatten(2).logsumexp(dim=2)

    def forward(self, features: Tensor, *, kind: str | None = None) -> HeadOutput:
        """Return logits, or logits and maps; `cape` maps and logits come from one computation of log P."""
        if kind != "cape":
            return super().forward(features, kind=kind)
        parts = self.log_parts(self.evidence(features))
        return parts.flatten(2).logsumexp(dim=2), parts.exp()

    def log_parts(self, evidence: Tensor) -> Tensor:
        """Compute log P (B, C, H, W), the product of eq. 8, in log space."""
        return log_parts(at_least_float32(evidence), at_least_float32(self.log_temperature), self.naive)[0]

    def draw(self, evidence: Tensor, kind: str) -> Tensor:
        if kind == "mu-cape":
            evidence = at_least_float32(evidence)
            return (evidence + evidence.mean(dim=1, keepdim=True)).relu()
        return super().draw(evidence, kind)


def _is_trained(evidence: Tensor) -> bool:
    """Tell whether a backward pass may follow, which is not so while a program is traced, compiled or exported."""
    watched = isinstance(evidence, Tensor) and evidence.requires_grad and torch.is_grad_enabled()
    return watched and not torch.compiler.is_compiling() and not torch.jit.is_tracing()  # type: ignore[attr-defined]


def _apply(features: Tensor, weight: Tensor, bias: Tensor | None, classes: Tensor | None) -> Tensor:
    """Apply a linear layer at every location: for all classes, or without bias for those of each image, (B, k)."""
    if classes is None:
        return F.conv2d(features, weight[:, :, None, None], bias)
    return torch.einsum("bkc,bchw->bkhw", weight[classes], features)


@torch.fx.wrap  # a tracer does not know the dtype
def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32, or as they are where they are more precise already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def select(maps: Tensor, classes: Tensor | None) -> Tensor:
    """Return the maps of `classes` (B, k) out of (B, C, H, W), or all maps without `classes`."""
    if classes is None:
        return maps
    return maps.gather(1, classes[:, :, None, None].expand(-1, -1, *maps.shape[2:]))


BUILT_IN = (SoftCAMHead, CAPEHead)

HEADS: dict[str, type[EvidenceHead]] = {head.family: head for head in BUILT_IN}
"""Family -> its head. `softcam_hub.register_head` adds heads of other packages."""


def native_kinds() -> dict[str, type[EvidenceHead]]:
    """Return the map kinds that only a head can draw, by name, each with its head."""
    return {kind.name: head for head in HEADS.values() for kind in head.map_kinds if kind.native}


def describe_kind(name: str) -> MapKind:
    """Return the description of a map kind; maps of post-hoc methods only rank locations."""
    for head in HEADS.values():
        for kind in head.map_kinds:
            if kind.name == name:
                return kind
    return MapKind(name, native=False)
