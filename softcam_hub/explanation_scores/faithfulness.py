"""Does the map say what the model did? One value per image; means are taken last."""

import torch
from torch import Tensor


def completeness_error(composed: Tensor, prediction: Tensor) -> Tensor:
    """|what the map adds up to - what the model predicts|, (B,).

    Args:
        composed: (B,) the sum of a CAPE map, or the mean of a SoftCAM map.
        prediction: (B,) the class probability, or the logit.
    """
    return (composed - prediction).abs()


def gini_sparseness(maps: Tensor) -> Tensor:
    """Gini coefficient of |map|, (B,): 0 where every location counts the same, towards 1 where a single one does.

    Args:
        maps: (B, H, W).
    """
    values = maps.flatten(1).abs().to(torch.promote_types(maps.dtype, torch.float32)).sort(dim=1).values
    count = values.shape[1]
    rank = torch.arange(1, count + 1, device=values.device, dtype=values.dtype)
    total = values.sum(dim=1)
    uneven = ((2 * rank - count - 1) * values).sum(dim=1) / (count * total.clamp_min(torch.finfo(values.dtype).tiny))
    return torch.where(total == 0, 0.0, uneven)
