"""Measure what the cards of architectures say: sizes, and how exactly maps add up to predictions."""

from pathlib import Path

import timm
import torch
from timm.models import get_pretrained_cfg

import softcam_hub
from softcam_hub.files import write_json_lines
from softcam_hub.hub.cards import Row
from softcam_hub.models.heads import HEADS
from softcam_hub.training import parse, recipes

BACKBONES = {"resnet50": "imagenet-1k", "vgg16": "imagenet-1k", "swinv2_b": "imagenet-1k"}
"""Architecture -> data set on which timm's default weights were trained."""

IMAGES = 2
"""Number of images of a measurement."""


def write_rows(file: Path) -> None:
    """Measure every family with every backbone, and write one row for each."""
    rows = [measure(family, backbone) for backbone in BACKBONES for family in HEADS]
    write_json_lines(file, rows)


@torch.no_grad()
def measure(family: str, backbone: str) -> Row:
    """Measure a model with random weights on random images."""
    torch.manual_seed(0)
    model = timm.create_model(f"{family}_{backbone}").eval()
    cfg = get_pretrained_cfg(model.architecture)
    images = torch.rand(IMAGES, *model.input_size)
    features = model.forward_features(images)
    logits, maps = model.forward_head(features), model.head.maps(features)
    kind = model.head.map_kinds[0]
    composed, predicted = kind.compose(maps), kind.target(logits, logits.softmax(dim=1))
    return {
        "model": f"{family}_{backbone}",
        "family": family,
        "backbone": backbone,
        "exact": model.exact,
        "image_size": model.input_size[-1],
        "map_size": list(maps.shape[2:]),
        "million_parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "completeness_error": float((composed - predicted).abs().max() / predicted.abs().max()),
        "vanilla_error": vanilla_error(model, logits, images) if kind.averages_to_logit and model.exact else None,
        "images": IMAGES,
        "output_stride": accepts_output_stride(model.architecture),
        "license": cfg.license,
        "base_model": cfg.hf_hub_id,
        "datasets": [BACKBONES[backbone]],
        "recipes": [name for name in recipes() if trains_model(name, f"{family}_{backbone}")],
        "command": "python -m tools.render_cards --measure",
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def vanilla_error(model: torch.nn.Module, logits: torch.Tensor, images: torch.Tensor) -> float:
    """Return the largest difference from the logits of timm's own model, relative to the largest logit."""
    expected = softcam_hub.to_vanilla(model)(images)
    return float((logits - expected).abs().max() / expected.abs().max())


def accepts_output_stride(architecture: str) -> bool:
    """Tell whether timm builds the architecture with `output_stride=8`."""
    try:
        with torch.device("meta"):
            timm.create_model(architecture, output_stride=8)
    except (TypeError, NotImplementedError, AssertionError):
        return False
    return True


def trains_model(recipe: str, model: str) -> bool:
    """Tell whether a recipe trains a model of this name."""
    return parse(["--recipe", recipe, "--output", "unused"]).model.model.partition(".")[0] == model
