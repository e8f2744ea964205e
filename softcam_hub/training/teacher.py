"""Find the vanilla classifier that a head is fitted to: weights of a linear layer on the model's own features."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..loading import load_classifier
from ..models.conversion import to_vanilla
from ..models.label_kind import is_multi_label
from ..models.self_explaining import SelfExplaining
from ..models.weights import converted_weights


def find_teacher(model: SelfExplaining, teacher: nn.Module | str | Path | None) -> nn.Linear:
    """Return the vanilla classifier of pooled features, frozen, in float32 and on the device of the model's head.

    Args:
        model: Model with an exact head that can be bootstrapped.
        teacher: Vanilla classifier with the model's backbone, or None for the one that the model itself holds.
    """
    weight, bias = _own_classifier(model) if teacher is None else _classifier_of(teacher, model)
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError("the vanilla classifier has NaN or infinite weights: there is nothing to fit to")
    linear = skip_init(nn.Linear, *weight.T.shape, device=model.head.weight.device, dtype=torch.float32)
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear.requires_grad_(False)


def _own_classifier(model: SelfExplaining) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the model's teacher, or of a head that is the vanilla classifier still."""
    held: Any = getattr(model, "teacher", None)
    source = model.head if held is None else held
    if held is not None or model.head.is_off_the_shelf:
        return source.weight.detach(), source.bias.detach()
    if model.head.bias.any():
        raise ValueError(
            f"the head of this {model.timm_name} has learnt already, and the vanilla classifier to fit it to is not in "
            "it any more: name that with teacher=, such as the folder `vanilla` of a training run, or convert it again"
        )
    raise ValueError(
        f"the head of this {model.timm_name} is fresh, and there is no trained classifier to fit it to: fine-tune the "
        f"vanilla {model.architecture}, and pass its softcam_hub.convert(vanilla, {model.family!r}); or name it with "
        "teacher="
    )


def _classifier_of(teacher: nn.Module | str | Path, model: SelfExplaining) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a vanilla classifier, or raise an error where it does not read the model's features."""
    loaded = load_classifier(teacher)
    vanilla: Any = loaded.model
    if isinstance(vanilla, SelfExplaining):
        if not vanilla.head_class.keeps_logits:
            raise TypeError(f"the teacher is a vanilla classifier, got {loaded.name}: pass the one that it was made of")
        vanilla = to_vanilla(vanilla)
    if is_multi_label(vanilla):
        raise ValueError(f"the teacher {loaded.name} has several labels per image, and {model.timm_name} one")
    if vanilla.num_classes != model.num_classes:
        raise ValueError(f"the teacher has {vanilla.num_classes} classes, and the model {model.num_classes}")
    architecture = vanilla.pretrained_cfg.get("architecture")
    if architecture != model.architecture:
        raise ValueError(f"the teacher is a {architecture}, and the backbone of the model a {model.architecture}")
    weights = converted_weights(vanilla, model)
    for name, own in model.state_dict().items():
        if name.startswith("backbone.") and not _is_same(weights[name], own):
            raise ValueError(
                f"the teacher has another backbone than the model: {name.removeprefix('backbone.')} differs. A head is "
                "fitted to the classifier of its own features: start from "
                f"softcam_hub.convert(teacher, {model.family!r})"
            )
    return weights["head.weight"], weights["head.bias"]


def _is_same(theirs: Tensor, own: Tensor) -> bool:
    """Tell whether two weights are equal in the precision of the second."""
    return theirs.shape == own.shape and torch.equal(theirs.to(own), own)
