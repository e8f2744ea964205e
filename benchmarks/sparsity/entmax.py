"""Softmaxes with true zeros, over the last dimension: sparsemax and entmax-1.5.

Both are argmax_p p·x + H_α(p) over the simplex, with Tsallis' entropy of α = 2 (Martins & Astudillo, ICML 2016) and
α = 1.5 (Peters et al., ACL 2019): p_i = max((α - 1)·x_i - t, 0)^(1 / (α - 1)), with the t that makes p sum to 1. The
support is found by sorting, and autograd differentiates p, since t is a smooth function of the values above it.
"""

import torch
from torch import Tensor


def sparsemax(values: Tensor) -> Tensor:
    """Compute max(x - t, 0), which sums to 1."""
    values = values - values.detach().amax(dim=-1, keepdim=True)
    ordered = values.sort(dim=-1, descending=True).values
    count = _ranks(ordered)
    thresholds = (ordered.cumsum(dim=-1) - 1) / count
    return (values - _at_support(thresholds, ordered)).clamp_min(0)


def entmax15(values: Tensor) -> Tensor:
    """Compute max(x / 2 - t, 0)², which sums to 1."""
    values = (values - values.detach().amax(dim=-1, keepdim=True)) / 2
    ordered = values.sort(dim=-1, descending=True).values
    count = _ranks(ordered)
    mean = ordered.cumsum(dim=-1) / count
    spread = ordered.square().cumsum(dim=-1) - count * mean.square()  # Σ (x - mean)²
    # Σ (x - t)² = 1 over the support; below the smallest positive root has no slope
    thresholds = mean - ((1 - spread) / count).clamp_min(1e-12).sqrt()
    return (values - _at_support(thresholds, ordered)).clamp_min(0).square()


def _ranks(ordered: Tensor) -> Tensor:
    return torch.arange(1, ordered.shape[-1] + 1, device=ordered.device, dtype=ordered.dtype)


def _at_support(thresholds: Tensor, ordered: Tensor) -> Tensor:
    """Return the threshold (..., 1) of the largest set of values that all lie above their own threshold."""
    size = (ordered > thresholds).sum(dim=-1, keepdim=True).clamp_min(1)
    return thresholds.gather(-1, size - 1)
