"""Vanilla classifiers as self-explaining ones, and back."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import PretrainedCfg
from torch import nn

from .backbone import TimmModule
from .classifier import Classifier, build
from .evaluation_mode import evaluation_mode
from .heads import HEADS, Family
from .vanilla import find_vanilla
from .weights import converted_weights, derive_cfg, restore_cfg, set_linear_classifier, warn_off_the_shelf


def convert(vanilla: nn.Module, family: Family = "softcam", preprocessing: Any = None, scales: int = 1) -> Classifier:
    """Make a classifier self-explaining, with its own weights and labels.

    A SoftCAM model gives the logits of the vanilla classifier. A CAPE model gives others, and a warning says so:
    `softcam_hub.post_fit` fits it to the vanilla classifier.

        vanilla = timm.create_model("resnet50", pretrained=True)
        explanation = softcam_hub.convert(vanilla).explain(images, top_k=2)

    Args:
        vanilla: Model from `timm.create_model`, `TimmWrapperForImageClassification` of transformers, or a classifier of
            transformers or torchvision that computes what an architecture of timm computes. A search for this
            architecture takes some seconds.
        family: Family of the head, such as `softcam` (the same logits) or `cape` (the paper's off-the-shelf
            configuration).
        preprocessing: Image processor of transformers, or transforms or weights of torchvision, for a classifier of
            these libraries, which does not know how its images are prepared.
        scales: Number of depths of the backbone whose features give evidence, with weights of zero at first for all but
            the last.
    """
    if family not in HEADS:
        raise ValueError(f"unknown family {family!r}: expected one of {', '.join(HEADS)}")
    timm_model, known, multi_label = find_vanilla(vanilla, preprocessing)
    architecture = timm_model.pretrained_cfg["architecture"]
    if not timm_model.num_classes:
        raise ValueError(f"{architecture} has num_classes=0: there is no classifier to convert")
    recorded = getattr(timm_model, "_model_args", {})
    args = {**recorded, "num_classes": timm_model.num_classes, "global_pool": None}
    if scales != 1:
        args["scales"] = scales
    if multi_label:
        args["multi_label"] = True
    cfg = PretrainedCfg(**{name: value for name, value in known.items() if name != "state_dict"})
    model = build(f"{family}_{architecture}", pretrained_cfg=derive_cfg(cfg, f"{family}_{architecture}"), **args)
    _refuse_inexact(model, f"{architecture} cannot be converted with its classifier")
    weight = next(timm_model.parameters())
    model = model.to(weight.device, weight.dtype).train(timm_model.training)
    model.load_state_dict(converted_weights(timm_model, model))
    _check_conversion(timm_model, model)
    model.alignment = getattr(timm_model, "alignment", None)
    model.measures_on_first_use = model.alignment is None
    model._model_args = args  # what timm records when it makes a model, so that it can be saved and rebuilt
    warn_off_the_shelf(model)
    return model


@torch.no_grad()
def _check_conversion(vanilla: TimmModule, model: Classifier) -> None:
    """Refuse a timm model that is not what its name says any more: another pool, or layers exchanged."""
    weight = model.head.weight
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *model.input_size, generator=generator).to(weight.device, weight.dtype)
    with evaluation_mode(vanilla), evaluation_mode(model):
        expected = vanilla(image)
        features = model.last_features(model.forward_features(image))
        logits = F.linear(features.mean(dim=(2, 3)), weight, model.head.bias)
    # a classifier that starts with zeros has logits of zeros, which is no reason to refuse it
    error = (logits - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    if not error < max(1e-3, 16 * torch.finfo(weight.dtype).eps):
        raise ValueError(
            f"this {model.architecture} does not average its features and multiply once, as timm's does (its logits "
            f"differ by {float(error):.1e}): another global_pool, or an exchanged layer, admits no evidence map"
        )


def to_vanilla(model: Classifier) -> nn.Module:
    """Make the vanilla timm model with the weights of a self-explaining one.

        vanilla = softcam_hub.to_vanilla(timm.create_model("softcam_resnet50", pretrained=True))

    The vanilla classifier of a SoftCAM model gives the same logits; that of a CAPE model gives others.

    Args:
        model: timm model of this package, with classes and an exact head.
    """
    if not isinstance(model, Classifier) or not model.num_classes:
        names = " or ".join(f"{family}_*" for family in HEADS)
        raise TypeError(f"to_vanilla() takes a {names} timm model with classes, got {type(model).__name__}")
    _refuse_inexact(model, f"{model.family}_{model.architecture} has no vanilla counterpart")
    if model.reads_finer:
        raise ValueError(
            f"this {model.timm_name} has no vanilla counterpart: it has learnt from finer features (scales="
            f"{model.scales}), which a vanilla classifier does not read"
        )
    args = {**model.backbone_args, "num_classes": model.num_classes}
    vanilla: TimmModule = timm.create_model(model.architecture, pretrained_cfg=restore_cfg(model), **args)
    weight = next(model.parameters())
    vanilla = vanilla.to(weight.device, weight.dtype).train(model.training)
    own = {key.removeprefix("backbone."): v for key, v in model.state_dict().items() if key.startswith("backbone.")}
    unexpected = vanilla.load_state_dict(own, strict=False).unexpected_keys
    if unexpected:
        raise RuntimeError(f"timm's {model.architecture} has no place for {', '.join(unexpected)}")
    set_linear_classifier(vanilla, model.anatomy, model.head.weight.detach(), model.head.bias.detach())
    vanilla.multi_label = model.multi_label  # timm's own models have neither
    vanilla.alignment = None if model.alignment is None else model.alignment.merged()
    return vanilla


def _refuse_inexact(model: Classifier, purpose: str) -> None:
    """Raise ValueError, with a reason, for an architecture whose own classifier cannot be applied per location."""
    if model.anatomy.exact:
        return
    reasons = {
        "vgg": "its 7x7 fully connected layers cannot be applied per location",
        "tokens": "its classifier reads a class token or attention pool, not the patches",
    }
    raise ValueError(f"{purpose}: {reasons[model.anatomy.head_type]}")
