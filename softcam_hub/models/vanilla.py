"""Find the timm classifier in what a user wants to convert; for any other classifier, say which way leads there."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import timm
import torch
from torch import nn

from .backbone import TimmModule
from .label_kind import is_multi_label, written_multi_label
from .self_explaining import SelfExplaining

_OTHER_NAMES = {"vision_transformer": "vit", "swin_transformer": "swin"}
"""What torchvision calls an architecture, where timm has a name of its own."""

_MOST_CANDIDATES = 12
"""Number of timm architectures that are compared with the model of another library, which takes a second or two."""


def find_vanilla(source: nn.Module) -> tuple[TimmModule, dict[str, Any], bool]:
    """Return a timm classifier, the description of its images and classes, and whether images have several labels.

    Args:
        source: Model from `timm.create_model`, or `TimmWrapperForImageClassification` of transformers.
    """
    if isinstance(getattr(source, "timm_model", None), nn.Module):
        cfg, multi_label = read_wrapper(source)
        return source.timm_model, cfg, bool(multi_label)
    known: dict[str, Any] = getattr(source, "pretrained_cfg", None) or {}
    if isinstance(source, SelfExplaining) or not timm.is_model(known.get("architecture") or ""):
        raise TypeError(
            "convert() takes a model from timm.create_model, or transformers' TimmWrapperForImageClassification, got "
            f"{type(source).__name__}{_advise(source)}"
        )
    return source, known, bool(is_multi_label(source))


def read_wrapper(wrapper: TimmModule) -> tuple[dict[str, Any], bool | None]:
    """Return what transformers' wrapper of a timm model says of images and classes, and of the kind of labels.

    Args:
        wrapper: `TimmWrapperForImageClassification`, or another model that holds a `timm_model`.
    """
    config, classes = wrapper.config, wrapper.timm_model.num_classes
    cfg = {**wrapper.timm_model.pretrained_cfg, **(getattr(config, "pretrained_cfg", None) or {})}
    names = [config.id2label.get(index) for index in range(classes)]
    unnamed = [f"LABEL_{index}" for index in range(classes)]  # what transformers calls classes without a name
    cfg |= {"num_classes": classes, "label_names": None if names == unnamed else names}
    multi_label = written_multi_label({"problem_type": config.problem_type, "model_args": config.model_args})
    trained = getattr(wrapper.timm_model, "multi_label", None)
    if None not in (multi_label, trained) and multi_label != trained:
        raise ValueError(
            f"problem_type={config.problem_type!r} was given at load, but the model was trained with "
            f"{'several labels' if trained else 'one label'} per image: leave problem_type out"
        )
    return cfg, multi_label


def _advise(source: Any) -> str:
    """Name the timm architecture that a model of another library seems to be, and how to start from it."""
    if isinstance(source, SelfExplaining):
        return ": it explains itself already, and to_vanilla() makes the vanilla classifier of a timm model"
    if isinstance(source, str):
        return f": make it with timm.create_model({source!r}, pretrained=True)"
    if not isinstance(source, nn.Module):
        return ""
    size = sum(weight.numel() for weight in source.parameters())
    classes = getattr(getattr(source, "config", None), "num_labels", None) or getattr(source, "num_classes", 1000)
    candidates = list(islice(_similar_names(source), _MOST_CANDIDATES))
    for name in candidates:
        with torch.device("meta"):
            candidate = timm.create_model(name, num_classes=classes)
        if sum(weight.numel() for weight in candidate.parameters()) == size:
            return (
                f". timm's {name} has exactly as many parameters, and is probably the same architecture: start from "
                f"softcam_hub.build('softcam_{name}', pretrained={timm.is_model_pretrained(name)})"
            )
    if candidates:
        return f". timm has architectures of that name, such as {candidates[0]}: train one of them, and convert it"
    return ""


def _similar_names(source: nn.Module) -> Iterator[str]:
    """List timm architectures that may be the one of a transformers or torchvision model, the likeliest first."""
    config = getattr(source, "config", None)
    recorded = str(getattr(config, "_name_or_path", "")).rpartition("/")[2].replace("-", "_")
    if timm.is_model(recorded):  # google/vit-base-patch16-224
        yield recorded
    module = type(source).__module__.rpartition(".")[2]
    name = getattr(config, "model_type", None) or _OTHER_NAMES.get(module, module)
    stem = str(name).replace("_", "")
    if stem:
        plain = [found for suffix in ("_*", "[0-9]*") for found in timm.list_models(f"{stem}{suffix}")]
        yield from sorted(plain, key=lambda found: (len(found), found))
