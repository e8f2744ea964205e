"""Names of explainers, and a small network, for tests of explainers."""

import timm
import torch
from conftest import randomise

CAMS = ["cam", "grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "lift-cam", "fd-cam", "score-cam"]
EVERYWHERE = ["grad-cam", "grad-cam++", "smooth-grad-cam++", "layer-cam", "fd-cam", "score-cam", "random", "centre"]
PIXELS = ["guided-backprop", "integrated-gradients"]
CLASSES = torch.tensor([[0, 3], [4, 1]])
FEW = {"n": 2, "steps": 3}


def options_for(names):
    owners = {"n": "smooth-grad-cam++", "steps": "integrated-gradients"}
    return {option: value for option, value in FEW.items() if owners[option] in names}


def network(name="test_resnet", size=96, **options):
    return randomise(timm.create_model(name, num_classes=5, **options)).eval(), torch.randn(2, 3, size, size)
