"""Models of several depths with random weights, in which finer features have a say."""

import torch
from conftest import randomise
from torch import nn

import softcam_hub
from softcam_hub.models.modeling import CAPEForImageClassification, SoftCAMForImageClassification

FAMILIES = ("softcam", "cape")
MODELS = {"softcam": SoftCAMForImageClassification, "cape": CAPEForImageClassification}


def make(family="softcam", architecture="test_resnet", scales=3, **options):
    """A model with random weights whose finer features have a say."""
    torch.manual_seed(0)
    model = randomise(softcam_hub.build(f"{family}_{architecture}", num_classes=5, scales=scales, **options)).eval()
    nn.init.normal_(model.head.fine_weight, std=0.1)
    return model


def images(height=64, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
