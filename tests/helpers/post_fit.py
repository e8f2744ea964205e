"""Small models and images to post-fit, and what a call has changed."""

import timm
import torch
from conftest import randomise

import softcam_hub

FAST = {"epochs": 4, "batch_size": 4}


def vanilla_model(architecture="test_resnet", **args):
    torch.manual_seed(0)
    return randomise(timm.create_model(architecture, num_classes=3, **args)).eval()


def cape(architecture="test_resnet", **args):
    return softcam_hub.convert(vanilla_model(architecture, **args), "cape")


def noise(count=10, side=64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def differences(model, before):
    return {name for name, value in model.state_dict().items() if not value.equal(before[name])}


def largest_difference(found, expected):
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)
