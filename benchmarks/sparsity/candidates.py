"""The candidates: ways to compose a prediction of maps, and penalties, which may make maps sparse.

- `E = W·F` is the evidence (B, C, H, W) without the bias b. Dense SoftCAM shows `E + b`, as the package does. Where
  evidence is set to zero, b stays outside of the maps and is added to their mean: without zeros every candidate of the
  SoftCAM kind is the vanilla classifier.
- Thresholds are relative to the evidence's own scale, so that a map of W's multiple is the multiple of the map, and no
  W outgrows them.
- CAPE's candidates sum to the prediction. They differ in the saliency of locations: its form, and what it reads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .entmax import entmax15, sparsemax

Compose = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""Function of evidence (B, C, H, W), bias (C,) and the parameter; returns logits (B, C) and maps (B, C, H, W)."""


@dataclass(frozen=True)
class Candidate:
    """A way to a prediction and its maps.

    Args:
        formula: The maps or the penalty in a line, for readers.
        parameter: Letter of the parameter in the formula.
        grid: Values of the parameter that the screening tries.
        compose: Function from evidence to logits and maps.
        penalty: Penalty of maps (B, C, H, W), which training multiplies by the parameter and adds to the
            cross-entropy.
        annealed: Let the parameter grow from 0 during the first half of training.
    """

    formula: str
    parameter: str
    grid: tuple[float, ...]
    compose: Compose
    penalty: Callable[[Tensor], Tensor] | None = None
    annealed: bool = False

    def loss(self, maps: Tensor, value: float) -> Tensor:
        """Return what is added to the cross-entropy."""
        return maps.new_zeros(()) if self.penalty is None else value * self.penalty(maps)


def dense(evidence: Tensor, bias: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Compose dense SoftCAM: maps E + b, whose mean is the logit."""
    maps = evidence + bias[:, None, None]
    return maps.mean(dim=(2, 3)), maps


def bias_outside(maps: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of maps plus the bias as logits, and the maps."""
    return maps.mean(dim=(2, 3)) + bias, maps


def outside(evidence: Tensor, bias: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Compose dense maps E without the bias."""
    return bias_outside(evidence, bias)


def centred(evidence: Tensor, bias: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Compose maps without the evidence that all classes share, which no softmax over classes can see."""
    return bias_outside(_centre(evidence), bias)


def _centre(evidence: Tensor) -> Tensor:
    return evidence - evidence.mean(dim=1, keepdim=True)


def soft_threshold(evidence: Tensor, bias: Tensor, value: float, scale: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Compose maps sign(E)·max(|E| - τ·mean|E|, 0).

    Args:
        evidence: Evidence, (B, C, H, W).
        bias: Bias, (C,).
        value: Threshold τ in units of the mean.
        scale: Dimensions of the mean: locations of one map, or classes and locations of an image.
    """
    size = evidence.abs()
    return bias_outside(evidence.sign() * (size - value * size.mean(dim=scale, keepdim=True)).relu(), bias)


def one_sided(evidence: Tensor, bias: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Compose maps max(E' - τ·mean|E'|, 0) of the centred evidence E', with one mean for all maps of an image."""
    evidence = _centre(evidence)
    return bias_outside((evidence - value * evidence.abs().mean(dim=(1, 2, 3), keepdim=True)).relu(), bias)


def rectified(evidence: Tensor, bias: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Compose maps max(E + b, 0): evidence for a class only, above a level that each class learns."""
    maps = (evidence + bias[:, None, None]).relu()
    return maps.mean(dim=(2, 3)), maps


def highest(evidence: Tensor, bias: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Compose maps E / p at the share p of locations where E is highest, and 0 elsewhere."""
    flat = evidence.flatten(2)
    count = max(1, round(value * flat.shape[2]))
    top = flat.topk(count, dim=2)
    kept = torch.zeros_like(flat).scatter(2, top.indices, top.values) * (flat.shape[2] / count)
    return bias_outside(kept.view_as(evidence), bias)


def attended(evidence: Tensor, bias: Tensor, value: float) -> tuple[Tensor, Tensor]:
    """Compose maps HW·a·E, where a is entmax-1.5 over locations of κ·E in units of its deviation; κ = 0 is SoftCAM."""
    flat = evidence.flatten(2)
    deviation = flat.var(dim=2, keepdim=True, correction=0).clamp_min(1e-12).sqrt()
    maps = flat.shape[2] * entmax15(value * flat / deviation) * flat
    return bias_outside(maps.view_as(evidence), bias)


def cape(
    evidence: Tensor,
    bias: Tensor,
    value: float,
    normalise: Callable[[Tensor], Tensor],
    read: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Compose CAPE: P = softmax over classes · saliency of locations; logits log Σ P.

    Args:
        evidence: Evidence, (B, C, H, W).
        bias: Bias, (C,).
        value: Factor κ of what the saliency reads.
        normalise: Function from values (B, HW) to a distribution over locations.
        read: Function from evidence (B, C, HW) to what the saliency reads, (B, HW).
    """
    size = evidence.shape[2:]
    evidence = (evidence + bias[:, None, None]).flatten(2)
    saliency = normalise(value * read(evidence))
    shown = saliency > 0
    # a location without saliency has log P = -inf, and passes no gradient on
    log_saliency = torch.where(shown, saliency.where(shown, 1.0).log(), -torch.inf)
    parts = evidence.log_softmax(dim=1) + log_saliency[:, None]
    return parts.logsumexp(dim=2), parts.exp().unflatten(2, size)


def mean_evidence(evidence: Tensor) -> Tensor:
    """Return the mean over classes, which CAPE's saliency reads (eq. 7)."""
    return evidence.mean(dim=1)


def contrast(evidence: Tensor) -> Tensor:
    """Return logsumexp - mean over classes: how far evidence tells the classes apart.

    Unlike the mean, it does not change when one vector is added to all rows of W, which is what cross-entropy leaves
    to chance.
    """
    return evidence.logsumexp(dim=1) - evidence.mean(dim=1)


def absolute(maps: Tensor) -> Tensor:
    """Compute mean|M|: the L1 of ElasticNet."""
    return maps.abs().mean()


def hoyer(maps: Tensor) -> Tensor:
    """Compute (Σ|M|)² / (HW·ΣM²), mean over maps: 1 for a flat map, 1 / HW for a single cell."""
    size = maps.abs().flatten(2)
    return (size.sum(dim=2).square() / (size.shape[2] * size.square().sum(dim=2)).clamp_min(1e-12)).mean()


def entropy(maps: Tensor) -> Tensor:
    """Compute the entropy of |M| / Σ|M| over locations, divided by log HW, mean over maps."""
    size = maps.abs().flatten(2)
    share = size / size.sum(dim=2, keepdim=True).clamp_min(1e-12)
    locations = torch.tensor(float(share.shape[2]))
    return -(share * share.clamp_min(1e-12).log()).sum(dim=2).mean() / locations.log()


def _cape(saliency: str, normalise: Callable[[Tensor], Tensor], read: Callable[[Tensor], Tensor]) -> Candidate:
    return Candidate(saliency, "κ", (0.25, 1.0, 4.0), partial(cape, normalise=normalise, read=read))


_map_scale, _image_scale = partial(soft_threshold, scale=(2, 3)), partial(soft_threshold, scale=(1, 2, 3))
_WEIGHTS, _THRESHOLDS = (0.1, 0.3, 1.0, 3.0), (0.5, 1.0, 1.25, 1.5, 2.0)

CANDIDATES: dict[str, Candidate] = {
    "dense": Candidate("M = E + b", "", (0.0,), dense),
    "centred": Candidate("M = E − mean_c E", "", (0.0,), centred),
    "l1": Candidate("λ·mean|M|", "λ", (0.03, 0.1, 0.3, 1.0), dense, absolute),
    "hoyer": Candidate("λ·(Σ|E|)²/(HW·ΣE²)", "λ", _WEIGHTS, outside, hoyer),
    "entropy": Candidate("λ·entropy of |E|/Σ|E|, over log HW", "λ", _WEIGHTS, outside, entropy),
    "threshold": Candidate("M = sign(E)·max(|E| − τ·mean_ij|E|, 0)", "τ", _THRESHOLDS, _map_scale),
    "threshold-annealed": Candidate(
        "the same, τ from 0 in the first half of training", "τ", _THRESHOLDS[1:], _map_scale, annealed=True
    ),
    "threshold-image": Candidate("M = sign(E)·max(|E| − τ·mean_cij|E|, 0)", "τ", (0.5, 1.0, 2.0, 3.0), _image_scale),
    "one-sided": Candidate(
        "M = max(E' − τ·mean_cij|E'|, 0) with E' = E − mean_c E", "τ", (0.5, 1.0, 2.0, 3.0), one_sided
    ),
    "rectified": Candidate("M = max(E + b, 0), λ·mean|M|", "λ", (0.0, 0.1, 0.3, 1.0), rectified, absolute),
    "highest": Candidate("M = E/p at the highest share p of cells", "p", (0.05, 0.1, 0.2, 0.3), highest),
    "attended": Candidate("M = HW·entmax-1.5_ij(κ·E/std_ij E)·E", "κ", (0.1, 0.2, 0.4, 0.8), attended),
    "cape": _cape("saliency softmax(κ·mean_c M')", partial(torch.softmax, dim=-1), mean_evidence),
    "cape-entmax": _cape("saliency entmax-1.5(κ·mean_c M')", entmax15, mean_evidence),
    "cape-sparsemax": _cape("saliency sparsemax(κ·mean_c M')", sparsemax, mean_evidence),
    "cape-contrast": _cape("saliency entmax-1.5(κ·(logsumexp_c M' − mean_c M'))", entmax15, contrast),
}
"""Name -> candidate. The first one is the reference, whose predictions are those of the vanilla classifier."""
