"""What the cards of whole architectures say of them: sizes, and how exactly maps add up to predictions."""

import json
from pathlib import Path

import timm
import torch
from timm.models import get_pretrained_cfg

import softcam_hub
from softcam_hub.files import write_text
from softcam_hub.hub.cards import Row
from softcam_hub.models.heads import HEADS
from softcam_hub.training import parse, recipes

BACKBONES = {"resnet50": "imagenet-1k", "vgg16": "imagenet-1k", "swinv2_b": "imagenet-1k"}
"""Architecture -> the data set that timm's default weights were trained on."""

IMAGES = 2


def write_rows(file: Path) -> None:
    rows = [measured(family, backbone) for backbone in BACKBONES for family in HEADS]
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


@torch.no_grad()
def measured(family: str, backbone: str) -> Row:
    torch.manual_seed(0)
    model = timm.create_model(f"{family}_{backbone}").eval()
    cfg = get_pretrained_cfg(model.architecture)
    images = torch.rand(IMAGES, *model.input_size)
    features = model.forward_features(images)
    logits, maps = model.forward_head(features), model.head.maps(features)
    composed = maps.sum(dim=(2, 3)) if family == "cape" else maps.mean(dim=(2, 3))
    predicted = logits.softmax(dim=1) if family == "cape" else logits
    return {
        "model": f"{family}_{backbone}",
        "family": family,
        "backbone": backbone,
        "exact": model.exact,
        "image_size": model.input_size[-1],
        "map_size": list(maps.shape[2:]),
        "million_parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "completeness_error": float((composed - predicted).abs().max() / predicted.abs().max()),
        "vanilla_error": vanilla_error(model, logits, images) if family == "softcam" and model.exact else None,
        "images": IMAGES,
        "output_stride": takes_output_stride(model.architecture),
        "license": cfg.license,
        "base_model": cfg.hf_hub_id,
        "datasets": [BACKBONES[backbone]],
        "recipes": [name for name in recipes() if trains(name, f"{family}_{backbone}")],
        "command": "python tools/render_cards.py --measure",
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def vanilla_error(model: torch.nn.Module, logits: torch.Tensor, images: torch.Tensor) -> float:
    expected = softcam_hub.to_vanilla(model)(images)
    return float((logits - expected).abs().max() / expected.abs().max())


def takes_output_stride(architecture: str) -> bool:
    try:
        with torch.device("meta"):
            timm.create_model(architecture, output_stride=8)
    except (TypeError, NotImplementedError, AssertionError):
        return False
    return True


def trains(recipe: str, model: str) -> bool:
    return parse(["--recipe", recipe, "--output", "unused"]).model.model.partition(".")[0] == model
