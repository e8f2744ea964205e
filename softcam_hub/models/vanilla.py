"""Find the timm classifier in what a user wants to convert; for any other classifier, say which way leads there."""

from typing import Any

import timm
from torch import nn

from .backbone import TimmModule, input_size
from .counterparts import counterpart_names, find_counterpart, similar_names, takes_one_size
from .label_kind import is_multi_label, written_multi_label
from .other_preprocessing import assume_preprocessing, read_preprocessing
from .self_explaining import SelfExplaining

_KEPT = ("architecture", "num_classes", "input_size", "pool_size", "fixed_input_size", "first_conv", "classifier")
"""Fields of timm's description of an architecture that say nothing about its weights."""


def find_vanilla(source: nn.Module, preprocessing: Any = None) -> tuple[TimmModule, dict[str, Any], bool]:
    """Return a timm classifier, the description of its images and classes, and whether images have several labels.

    Args:
        source: Model from `timm.create_model`, `TimmWrapperForImageClassification` of transformers, or a classifier of
            transformers or torchvision that timm has, too.
        preprocessing: Image processor of transformers, or transforms or weights of torchvision, for a classifier of
            these libraries.
    """
    source = _unwrapped(source)
    if isinstance(getattr(source, "timm_model", None), nn.Module):
        cfg, multi_label = read_wrapper(source)
        return source.timm_model, cfg, bool(multi_label)
    known: dict[str, Any] = getattr(source, "pretrained_cfg", None) or {}
    if not isinstance(source, SelfExplaining) and timm.is_model(known.get("architecture") or ""):
        if preprocessing is not None:
            raise ValueError("a timm model knows how its images are prepared: leave preprocessing out")
        return source, known, bool(is_multi_label(source))
    described = None if preprocessing is None else read_preprocessing(preprocessing)
    from_elsewhere = isinstance(source, nn.Module) and not isinstance(source, SelfExplaining)
    size = None if described is None else described["input_size"][1:]
    counterpart = find_counterpart(source, size) if from_elsewhere else None
    if counterpart is None:
        raise TypeError(
            "convert() takes a model from timm.create_model, transformers' TimmWrapperForImageClassification, or a "
            "classifier of transformers or torchvision that computes what an architecture of timm computes, got "
            f"{type(source).__name__}{_advise(source)}"
        )
    return counterpart, *_describe(source, counterpart, described)


def _unwrapped(source: Any) -> Any:
    """Return the model inside of `torch.compile` and of the wrappers for several GPUs, or the source itself."""
    while True:
        if isinstance(getattr(source, "_orig_mod", None), nn.Module):
            source = source._orig_mod
        elif isinstance(source, nn.DataParallel | nn.parallel.DistributedDataParallel):
            source = source.module
        else:
            return source


def _describe(
    source: nn.Module, counterpart: TimmModule, described: dict[str, Any] | None
) -> tuple[dict[str, Any], bool]:
    """Return the description of images and classes, and whether images have several labels.

    Args:
        source: Classifier of transformers or torchvision.
        counterpart: timm model with its weights.
        described: How images are prepared, if that was given.
    """
    channels, height, width = input_size(counterpart, counterpart._model_args)
    described = described or assume_preprocessing(channels, height, width)
    sides = tuple(described["input_size"][1:])
    if takes_one_size(counterpart) and sides != (height, width):
        raise ValueError(
            f"preprocessing gives images of {sides[0]} x {sides[1]} px, and this model takes {height} x {width} px only"
        )
    if len(described["mean"]) not in (1, channels):
        raise ValueError(
            f"preprocessing normalises {len(described['mean'])} channels, and this model takes {channels}: give one "
            "with as many"
        )
    config = getattr(source, "config", None)
    cfg = {name: value for name, value in counterpart.pretrained_cfg.items() if name in _KEPT}
    cfg |= {"num_classes": counterpart.num_classes}
    cfg |= {**described, "input_size": (channels, *sides)}
    names = _class_names(config, counterpart.num_classes) or cfg.get("label_names")
    cfg["label_names"] = names if names and len(names) == counterpart.num_classes else None
    return cfg, getattr(config, "problem_type", None) == "multi_label_classification"


def read_wrapper(wrapper: TimmModule) -> tuple[dict[str, Any], bool | None]:
    """Return what transformers' wrapper of a timm model says of images and classes, and of the kind of labels.

    Args:
        wrapper: `TimmWrapperForImageClassification`, or another model that holds a `timm_model`.
    """
    config, classes = wrapper.config, wrapper.timm_model.num_classes
    cfg = {**wrapper.timm_model.pretrained_cfg, **(getattr(config, "pretrained_cfg", None) or {})}
    cfg |= {"num_classes": classes, "label_names": _class_names(config, classes)}
    multi_label = written_multi_label({"problem_type": config.problem_type, "model_args": config.model_args})
    trained = getattr(wrapper.timm_model, "multi_label", None)
    if None not in (multi_label, trained) and multi_label != trained:
        raise ValueError(
            f"problem_type={config.problem_type!r} was given at load, but the model was trained with "
            f"{'several labels' if trained else 'one label'} per image: leave problem_type out"
        )
    return cfg, multi_label


def _class_names(config: Any, classes: int) -> list[str] | None:
    """Return the names of the classes in a configuration of transformers, or None where it has none."""
    named = getattr(config, "id2label", None) or {}
    found = [named.get(index, named.get(str(index))) for index in range(classes)]
    names = [name for name in found if name is not None]
    unnamed = [f"LABEL_{index}" for index in range(classes)]  # what transformers calls classes without a name
    return None if len(names) < classes or names == unnamed else names


def _advise(source: Any) -> str:
    """Say what to do with a classifier that cannot be converted."""
    if isinstance(source, SelfExplaining):
        return ": it explains itself already, and to_vanilla() makes the vanilla classifier of a timm model"
    if isinstance(source, str):
        return f": make it with timm.create_model({source!r}, pretrained=True)"
    if not isinstance(source, nn.Module):
        return ""
    name = next(counterpart_names(source), None)
    if name is not None:
        return (
            f". timm's {name} has as many weights, but another layout or other logits: start from "
            f"softcam_hub.build('softcam_{name}', pretrained={timm.is_model_pretrained(name)})"
        )
    name = next(similar_names(source), None)
    if name is not None:
        return f". timm has architectures of that name, such as {name}: train one of them, and convert it"
    return (
        ". timm has no architecture of that name: start from one of timm.list_models('softcam_*'), such as "
        "softcam_hub.build('softcam_resnet50', pretrained=True)"
    )
