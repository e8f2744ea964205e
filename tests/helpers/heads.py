"""Heads and features of a few channels, in double precision and with numbers that follow from a seed."""

import math

import torch
from torch import Tensor, nn

from softcam_hub.models.heads import HEADS, CAPEHead, EvidenceHead

VARIANTS = {"softcam": {}, "cape": {}, "naive": {"naive": True}}
KINDS = [(variant, kind) for variant in VARIANTS for kind in HEADS.get(variant, CAPEHead).kinds]


def make_head(
    variant: str, classes: int = 4, channels: int = 3, temperature: float = 1.0, scale: float = 1.0
) -> EvidenceHead:
    """A double-precision head whose evidence varies by about `scale`."""
    generator = torch.Generator().manual_seed(0)
    head = HEADS.get(variant, CAPEHead)(channels, classes, dtype=torch.float64, **VARIANTS[variant])
    with torch.no_grad():
        head.weight.copy_(scale * torch.randn(head.weight.shape, generator=generator))
        head.bias.copy_(scale * torch.randn(head.bias.shape, generator=generator))
        if variant != "softcam":
            head.log_temperature.fill_(math.log(temperature))
    return head


def make_features(batch: int = 2, channels: int = 3, height: int = 3, width: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, height, width, dtype=torch.float64, generator=generator)


class Calling(nn.Module):
    """A module whose forward is any method of `head`."""

    def __init__(self, head: EvidenceHead, method) -> None:
        super().__init__()
        self.head, self.method = head, method

    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.method(features)
